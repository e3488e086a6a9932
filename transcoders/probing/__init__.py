"""k-sparse probing: how much of a label of a document a few latents tell."""
