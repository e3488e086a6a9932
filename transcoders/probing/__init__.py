"""k-sparse probing: how much of a label of a document, or of a word, a few latents tell."""
