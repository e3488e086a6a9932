"""The sparse step on CPU."""
