"""Families of features: where they point, how large they are, and on which tokens they fire.

Parent p fires on a share of the tokens; on most of these exactly one of its children fires too. Nothing is stored of
it: a hash of the seed and of a token's row in the store decides, so that every reader sees the same firings.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from scipy.special import ndtri
from torch import Tensor

from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.tensors import save_tensors
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.predictors import Moments
from transcoders.planted.kinds import Kind
from transcoders.planted.settings import FamilySettings

TENSORS = ("kind", "rate", "x", "y")
PARENT = 0
"""Number of the parent among the members of its family; its children follow."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Step of the splitmix64 generator (Steele, Lea, Flood 2014), whose output function is the hash."""


class Firings(NamedTuple):
    """Which members of which families fire on some rows of a store, in the order of the rows."""

    row: Int[Tensor, "firings"]
    """Its place among the rows that were asked for."""
    family: Int[Tensor, "firings"]
    member: Int[Tensor, "firings"]
    activation: Float[Tensor, "firings"]

    def written(self, features: Float[Tensor, "families members d"]) -> Float[Tensor, "firings d"]:
        """Return what each firing adds to its row, ``features`` being what an activation of 1 adds."""
        return features[self.family, self.member] * self.activation[:, None]


class Families(NamedTuple):
    """Hold the families that a layer's activations are planted with; sizes are in raw units."""

    kind: Int[Tensor, "families"]
    rate: Float[Tensor, "families"]
    """Share of the tokens on which the parent fires."""
    x: Float[Tensor, "families members d_in"]
    """What a firing of activation 1 adds to x."""
    y: Float[Tensor, "families members d_out"]
    with_child: float
    spread: float
    seed: int

    @property
    def members(self) -> int:
        """The parent and its children."""
        return self.x.shape[1]

    def directions(self) -> Float[Tensor, "families members d_out"]:
        """Return the unit vectors along which the members write to y."""
        return torch.nn.functional.normalize(self.y, dim=-1)

    def firings(self, rows: NDArray[np.integer[Any]], draw: int = 0) -> Firings:
        """Return who fires on these ``rows`` of a store; another ``draw`` gives other firings."""
        streams = np.arange(self.rate.numel() * self.members).reshape(-1, self.members)
        chance = _uniform(self.seed, 3 * draw, rows, streams)
        choice = _uniform(self.seed, 3 * draw + 1, rows, streams[:, PARENT])
        rate, children = self.rate.numpy(), self.members - 1
        parent = chance[:, :, PARENT] < rate
        child = np.floor(choice / self.with_child * children)  # beyond the last one: none
        with_parent = parent[..., None] & (child[..., None] == np.arange(children))
        by_chance = chance[:, :, 1:] < (rate * self.with_child / children)[:, None]
        independent = (self.kind == Kind.INDEPENDENT).numpy()[:, None]
        fires = np.concatenate([parent[..., None], np.where(independent, by_chance, with_parent)], axis=2)
        row, family, member = (torch.from_numpy(ids) for ids in np.nonzero(fires))
        activation = 1 + self.spread * (2 * _uniform(self.seed, 3 * draw + 2, rows, streams)[fires] - 1)
        return Firings(row, family, member, torch.from_numpy(activation).float())


def plant(moments: Moments, length: float, settings: FamilySettings) -> Families:
    """Draw the families that ``settings`` describe.

    ``moments`` are those of training tokens; ``length`` is that of what the median living latent adds to y where it
    fires. In x a feature is as large as a probe along its own direction needs to separate its weakest firings with the
    AUROC ``detectable``: two normal distributions a distance d' apart, where d' = s / sqrt(d^T C d) for a feature of
    length s along d and tokens of covariance C, are separated with AUROC Phi(d' / sqrt 2). The best linear probe,
    d^T C^-1 x, needs a twentieth of that in Gemma's x, because other dimensions tell it what to expect along d.

    Raises:
        UserError: there are not so many orthogonal directions.
    """
    count, members = settings.nested + 2 * settings.controls, 1 + settings.children
    generator = torch.Generator().manual_seed(settings.seed)
    x, y = (
        _orthogonal(covariance, settings, generator).view(count, members, -1) for covariance in (moments.xx, moments.yy)
    )
    distance = math.sqrt(2) * float(ndtri(settings.detectable))
    deviation = torch.einsum("fmd,de,fme->fm", x, moments.xx.double(), x).sqrt()
    x_length = distance * deviation / (1 - settings.spread)
    y_length = torch.full((count, members), length * settings.size, dtype=torch.float64)
    y_length[:, 1:] *= settings.child_size
    kind = torch.tensor([Kind.NESTED] * settings.nested + [Kind.CHILDLESS, Kind.INDEPENDENT] * settings.controls)
    real = (kind != Kind.CHILDLESS)[:, None] | (torch.arange(members) == PARENT)
    ends = math.log(settings.lowest_rate), math.log(settings.highest_rate)
    rate = torch.exp(ends[0] + (ends[1] - ends[0]) * torch.rand(count, generator=generator, dtype=torch.float64))
    x, y = ((real * size)[..., None] * unit for size, unit in ((x_length, x), (y_length, y)))
    return Families(kind, rate, x.float(), y.float(), settings.with_child, settings.spread, settings.seed)


@torch.no_grad()
def typical_length(model: Transcoder, inputs: Iterable[Float[Tensor, "tokens d_in"]]) -> float:
    """Return the length of what the median living latent of ``model`` adds to y where it fires, raw units.

    Of each latent it is the root of the mean square of its activations above 0 on ``inputs``.
    """
    count = torch.zeros(model.config.d_hidden, dtype=torch.float64, device=model.W_dec.device)
    square = torch.zeros_like(count)
    for x in inputs:
        latents = model.encode(x)
        fired = latents.values > 0
        ids = latents.indices[fired].long()
        count.index_add_(0, ids, torch.ones(len(ids), dtype=count.dtype, device=count.device))
        square.index_add_(0, ids, latents.values[fired].double().square())
    living = count > 0
    rows = model.W_dec.double().norm(dim=1)[living] * model.config.output_scale
    return float(((square / count)[living].sqrt() * rows).median())


def save_families(families: Families, path: Path) -> None:
    """Write the families to a safetensors file."""
    tensors = {name: getattr(families, name) for name in TENSORS}
    numbers = {name: getattr(families, name) for name in Families._fields if name not in TENSORS}
    save_tensors(path, tensors, {"families": json.dumps(numbers)})


def load_families(path: Path) -> Families:
    """Read what ``save_families`` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["families"])
            return Families(**{name: file.get_tensor(name) for name in TENSORS}, **numbers)
    except (*DAMAGE, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read ({reason}); run `dvc repro -f families`") from None


def _orthogonal(
    covariance: Float[Tensor, "d d"], settings: FamilySettings, generator: torch.Generator
) -> Float[Tensor, "directions d"]:
    """Return random orthonormal directions that are orthogonal to the first principal components."""
    d, room = len(covariance), len(covariance) - settings.components
    if settings.directions > room:
        raise UserError(
            f"families.nested: {settings.nested} families and {settings.controls} controls of either kind, of "
            f"{1 + settings.children} members each, need {settings.directions} orthogonal directions, and d_model = "
            f"{d} has {room} beside families.components; lower one of them"
        )
    components = torch.linalg.eigh(covariance.double()).eigenvectors[:, room:]
    drawn = torch.randn(d, settings.directions, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn - components @ (components.T @ drawn)).Q.T


def _uniform(seed: int, draw: int, rows: NDArray[np.integer[Any]], streams: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each row and stream, [rows, *streams], which these and the seeds decide alone."""
    with np.errstate(over="ignore"):
        key = _mixed(_mixed(np.uint64(seed) + GOLDEN) + np.uint64(draw) * GOLDEN)
        of_row = _mixed(key + rows.astype(np.uint64) * GOLDEN)
        shape = (len(rows), *(1 for _ in range(streams.ndim)))
        bits = _mixed(of_row.reshape(shape) + (streams.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(bits: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """Return the output of splitmix64 for these states: every bit depends on all bits."""
    mixed = np.asarray(bits, np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
