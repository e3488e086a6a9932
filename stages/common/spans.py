"""The runs of cross-layer transcoders, each of which spans some layers."""

from pathlib import Path
from typing import NamedTuple

from transcoders.core.errors import UserError

CLT_COMPARISON = Path("data/clt_compare")


class LayersRun(NamedTuple):
    """One cross-layer transcoder of the matrix: what it is called, and the folders that its stages write."""

    variant: str
    span: str
    """The layers that it spans, such as ``0to17`` or ``3to5+9``."""
    seed: int

    @classmethod
    def named(cls, name: str) -> "LayersRun":
        """Return the run that is called ``name``.

        Raises:
            UserError: no run across layers is called so.
        """
        variant, _, rest = name.rpartition("-")[0].rpartition("-")
        seed = name.rpartition("-")[2]
        if not (variant and rest and seed.isdecimal()):
            raise UserError(f"circuits.crosslayer: {name!r} is no run; write variant-span-seed, such as clt-0to17-0")
        return cls(variant, rest, int(seed))

    @property
    def name(self) -> str:
        """The key of the run's stages, as in ``clt@clt-0to17-0``, and the name of its folders."""
        return f"{self.variant}-{self.span}-{self.seed}"

    @property
    def layers(self) -> list[int]:
        """The layers that ``span`` names, ascending.

        Raises:
            UserError: it is no span.
        """
        ranges = [part.partition("to") for part in self.span.split("+")]
        try:
            named = [n for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]
        except ValueError:
            named = []
        if not named or named != sorted(set(named)):
            raise UserError(f"clt.spans: {self.span!r} names no ascending layers; write 0to17, or 3to5+9")
        return named

    @property
    def model(self) -> Path:
        """The trained transcoder, its history and its training metrics."""
        return Path("models") / self.name

    @property
    def evaluation(self) -> Path:
        """What stage `clt_evaluate` writes."""
        return Path("data/clt") / self.name
