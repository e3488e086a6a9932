"""What writes to which layer's output, with which decoder rows: one view of transcoders of one layer and of many.

A transcoder of one layer is the case of a single target, its own layer; a latent of a cross-layer transcoder has a
decoder for every layer that it reaches.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from transcoders.circuits.parts import Replacement
from transcoders.core.errors import UserError
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.transcoder import Transcoder
from transcoders.kernels import SparseLatents

Transcoders = Mapping[int, Transcoder] | CrossLayerTranscoder
"""A set that stands in for the MLPs of several layers together."""


class Writer(NamedTuple):
    """Hold the latents that read one layer's x, and the bias and skip path of the same layer's y."""

    latents: Transcoder
    """Their encoder, and their decoder rows with those of all targets side by side; in normalised units."""
    targets: tuple[int, ...]
    """The layers whose y the latents write to, their own first, ascending."""
    output_scales: tuple[float, ...]
    """Of the targets."""
    input_scale: float
    b_dec: Tensor
    W_skip: Tensor | None
    provenance: Mapping[str, Any]

    @property
    def output_scale(self) -> float:
        """Return the scale of its own layer's y."""
        return self.output_scales[0]

    @property
    def width(self) -> int:
        """Return the dimensions of one target's y."""
        return self.latents.W_dec.shape[1] // len(self.targets)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> SparseLatents:
        """Return the latents of raw MLP inputs; batch dimensions are flattened to tokens."""
        return self.latents.encode_normalised(x.reshape(-1, x.shape[-1]) / self.input_scale)

    def decoders(self) -> dict[int, Float[Tensor, "d_hidden d_model"]]:
        """Return the decoder rows by target layer, in normalised units, sharing memory with the weights."""
        return dict(zip(self.targets, self.latents.W_dec.detach().split(self.width, 1), strict=True))


def writers_of(transcoders: Transcoders) -> dict[int, Writer]:
    """Return the writers of a set of transcoders by the layer that they read, ascending.

    Raises:
        UserError: latents of a layer are chosen only beside those of later layers.
    """
    if isinstance(transcoders, CrossLayerTranscoder):
        return _of_many(transcoders)
    return {number: _of_one(number, transcoders[number]) for number in sorted(transcoders)}


def _of_one(number: int, model: Transcoder) -> Writer:
    config = model.config
    skip = model.W_skip if config.skip else None
    scales = (config.output_scale,)
    return Writer(model, (number,), scales, config.input_scale, model.b_dec, skip, config.provenance)


def _of_many(model: CrossLayerTranscoder) -> dict[int, Writer]:
    config, d = model.config, model.config.d_model
    if config.budget == "token":
        raise UserError(
            "transcoders: budget: token chooses a token's latents over all layers at once, so a layer's are not known "
            "before those of later ones; circuits need budget: layer"
        )
    writers = {}
    for place, (number, latents) in enumerate(zip(config.layers, model.sources, strict=True)):
        reached = config.targets(place)
        writers[number] = Writer(
            latents,
            tuple(config.layers[target] for target in reached),
            tuple(config.output_scales[target] for target in reached),
            config.input_scales[place],
            model.b_dec[place * d : (place + 1) * d],
            model.W_skip[place] if config.skip else None,
            config.provenance,
        )
    return writers


class Waiting:
    """Hold what latents of a pass wrote to later layers' outputs, until the pass comes there."""

    def __init__(self) -> None:
        """Begin with nothing written."""
        self._parts: dict[int, Tensor] = {}

    def add_(self, layer: int, part: Tensor) -> None:
        """Add ``part`` to what waits for ``layer``."""
        self._parts[layer] = self._parts[layer] + part if layer in self._parts else part

    def add_to(self, layer: int, y: Tensor) -> Tensor:
        """Return ``y`` with what waited for ``layer``, which then no longer waits."""
        return y + self._parts.pop(layer) if layer in self._parts else y


def replacements_of(transcoders: Transcoders) -> dict[int, Replacement]:
    """Return what stands in for each layer's MLP in a pass from the first layer to the last.

    A layer's output is what the latents of that and all earlier layers write to it. The earlier ones are those of the
    same pass: they come from what the layers below really received.
    """
    writers, waiting = writers_of(transcoders), Waiting()
    return {number: _replacement(number, writer, waiting) for number, writer in writers.items()}


def _replacement(number: int, writer: Writer, waiting: Waiting) -> Replacement:
    def replace(x: Tensor) -> Tensor:
        written = writer.latents.decode_latents(writer.encode(x)).split(writer.width, 1)
        later = list(zip(writer.targets, written, writer.output_scales, strict=True))[1:]
        for target, part, scale in later:
            waiting.add_(target, part * scale)
        y = written[0] + writer.b_dec
        if writer.W_skip is not None:
            y = y + (x.reshape(-1, x.shape[-1]) / writer.input_scale) @ writer.W_skip.to(x).T
        return waiting.add_to(number, y * writer.output_scale).reshape(*x.shape[:-1], -1)

    return replace
