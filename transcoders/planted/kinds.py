"""What families are there for."""

from enum import IntEnum


class Kind(IntEnum):
    """What a family is there for."""

    NESTED = 0
    """Children fire with their parent alone: a sparse dictionary may let a child's latent stand for both."""
    CHILDLESS = 1
    """Its children are names without a direction: what is measured of them is the metric's noise."""
    INDEPENDENT = 2
    """Children fire as often as a nested family's, whatever the parent does."""
