"""Initialisation, loss, schedule, loop and checkpoints."""
