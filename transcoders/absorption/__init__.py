"""The first-letter task: feature absorption, splitting and redundancy of a dictionary."""
