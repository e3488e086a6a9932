"""Feature absorption, splitting and redundancy of a dictionary."""
