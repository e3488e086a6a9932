"""Word classes: does a latent stand for a class of words, and do latents of single words take its tokens away?"""
