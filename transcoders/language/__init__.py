"""The language model under study: its files, its hook points, its forward pass."""
