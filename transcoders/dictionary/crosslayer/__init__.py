"""Transcoders whose latents write to the outputs of several layers: what defines one, the model, its files."""
