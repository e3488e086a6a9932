"""Dictionaries whose latents lie on several processes."""
