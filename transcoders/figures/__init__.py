"""Figures for papers, drawn from tables."""
