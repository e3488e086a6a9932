"""Capturing, storing and streaming activations."""
