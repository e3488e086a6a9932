"""Families of features with known members, planted into stored activations: absorption that can be counted."""
