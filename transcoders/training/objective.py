"""What a step minimises: the (nested) reconstruction error, and what keeps latents sparse, alive, apart."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders import kernels
from transcoders.core.devices import multiplies_bf16
from transcoders.dictionary.dictionary import Dictionary
from transcoders.dictionary.encoders import Selection
from transcoders.dictionary.transcoder import Transcoder
from transcoders.kernels import SparseLatents
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.sharing import HERE, Sharing

PRESSURE_RATE = 0.02
"""At most so much, in natural logs, the weight of relu's L1 and jumprelu's L0 penalty changes in a step."""
FIRST_PRESSURE = 1e-3
ROWS_COMPARED = 512
"""Decoder rows on either side of the orthogonality penalty at a step: a sample of all pairs."""


Minimum = Callable[[Tensor], Tensor]
"""Replaces a number by its least over all processes."""


class Losses(NamedTuple):
    """Hold the losses of some tokens (normalised units), and the latents that made them."""

    total: Float[Tensor, ""]
    """What is minimised, AuxK and penalties on weights excepted."""
    nmse: Float[Tensor, ""]
    """Mean squared error per dimension of all latents' reconstruction, where mean ||y||^2 = d_out."""
    l1: Float[Tensor, ""]
    latents: list[SparseLatents]
    """Of each source."""
    residual: Float[Tensor, "tokens width"]


class Objective:
    """Compute the losses of a transcoder, or of the part that a phase trains, as ``variant`` and ``settings`` ask.

    ``pressure``, the weight of the sparsity penalty, is the only state (a checkpoint keeps it).
    """

    def __init__(
        self, model: Dictionary, settings: TrainSettings, variant: VariantSettings, sharing: Sharing = HERE
    ) -> None:
        """Start with the sparsity penalty's first weight; ``sharing`` says where the latents lie."""
        self.model, self.variant, self._sharing = model, variant, sharing
        self._seeks_k = model.encoder.seeks_k(settings.lambda_sparsity)
        self.pressure = model.b_dec.new_tensor(FIRST_PRESSURE if self._seeks_k else settings.lambda_sparsity)
        device = model.b_dec.device  # on CUDA autocast decides
        self._aux_in_bf16 = device.type == "cpu" and settings.precision != "float32" and multiplies_bf16(device)
        given = torch.tensor(variant.prefix_weights[: max(1, len(model.config.prefixes))], dtype=torch.float64)
        self._weights = given if given.sum() > 0 else torch.ones(len(model.config.groups), dtype=torch.float64)

    def losses(
        self,
        x: Float[Tensor, "tokens in"],
        y: Float[Tensor, "tokens width"],
        bound: list[Float[Tensor, "d_hidden"]] | None = None,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Return the losses of normalised ``x`` and ``y``.

        ``bound`` are each source's thresholds that ``batch_bound`` found for the full batch, if ``x`` is a part of one;
        ``generator`` draws the prefixes, where they are sampled.
        """
        model, selections = self.model, self._select(x, bound)
        latents = [selection.latents for selection in selections]
        target = model.target(x, y)
        if self.variant.stop_gradient:
            total, nmse, residual = self._separately(latents, target)
        else:
            sizes, weights = self._prefixes(generator)
            errors, residual = self._sharing.squared_errors(model, latents, target, sizes)
            total, nmse = (errors * weights.to(errors)).sum(), errors[-1]
        l1 = self._sharing.summed(torch.stack([part.values.sum() for part in latents]).sum() / len(x))
        if (penalty := self._sparsity(selections, l1, len(x))) is not None:
            total = total + self.pressure * penalty
        return Losses(total, nmse.detach(), l1.detach(), latents, residual)

    def _sparsity(self, selections: list[Selection], l1: Tensor, tokens: int) -> Tensor | None:
        """Return what the pressure weighs: jumprelu's L0 or relu's L1 per token, or the tanh of each latent."""
        if c := self.variant.tanh_penalty:  # decoder rows, of all targets together, have norm 1
            sums = [torch.tanh(c * selection.latents.values).sum() for selection in selections]
            return self._sharing.summed(torch.stack(sums).sum() / tokens)
        counts = [selection.l0.mean() for selection in selections if selection.l0 is not None]
        if counts:
            return self._sharing.summed(torch.stack(counts).sum())
        return l1 if self.pressure > 0 else None

    def aux(
        self,
        x: Float[Tensor, "tokens in"],
        residual: Float[Tensor, "tokens width"],
        dead: list[Int[Tensor, "dead"]],
        variance: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return AuxK of each source's ``dead`` latents over ``variance``, that of the full batch's residual.

        Each source tries by itself to make what is left of the outputs that it writes to; the mean counts.
        """
        narrow = self._aux_in_bf16 and self._sharing.processes == 1
        inputs = self.model.inputs(x.bfloat16() if narrow else x)
        losses = []
        for source, x_of, first, dead_of in zip(self.model.sources, inputs, self.model.firsts, dead, strict=True):
            left = residual[:, first : first + source.config.d_out].contiguous()
            losses.append(self._sharing.auxk(source, x_of, left, dead_of, variance))
        return torch.stack(losses).mean()

    def orthogonality(self, generator: torch.Generator, earlier: Dictionary | None) -> Float[Tensor, ""] | None:
        """Return the weighted penalty on decoder rows that point the same way, from a sample of them.

        With ``earlier`` latents: the mean over new rows of ``sum_j cos^2`` to them. Without: the mean
        over rows of the largest cos^2 to another row of the sample (OrtSAE, arXiv 2509.22033).
        """
        if self.variant.orthogonality != "penalty":
            return None
        if earlier is None and self.variant.training == "progressive":
            return None  # the first phase has nothing to keep apart from
        befores = [None] * len(self.model.sources) if earlier is None else earlier.sources
        pairs = zip(self.model.sources, befores, strict=True)
        of_sources = torch.stack([self._parallel(source, before, generator) for source, before in pairs])
        return self.variant.orthogonality_coefficient * of_sources.mean()

    def _parallel(self, source: Transcoder, earlier: Transcoder | None, generator: torch.Generator) -> Tensor:
        """Return how parallel a source's decoder rows are to earlier ones, or to each other."""
        rows = self._sample(source, generator)
        if earlier is None:
            cosines = (rows @ rows.T).fill_diagonal_(0.0)
            return cosines.square().amax(1).mean()
        others = self._sample(earlier, generator)
        count = self._sharing.config(earlier).d_hidden
        return (rows @ others.T).square().sum(1).mean() * (count / len(others))

    @torch.no_grad()
    def after_step(self, latents: list[list[SparseLatents]], l0: Float[Tensor, ""], minimum_: Minimum) -> None:
        """Move thresholds and the sparsity penalty's weight by what a batch showed.

        ``latents`` are those of each source in each part of the batch, of L0 ``l0`` over all sources.
        """
        if self._seeks_k:
            excess = l0 / (self.model.config.k * len(self.model.sources)) - 1
            self.pressure = self.pressure * (PRESSURE_RATE * excess.clamp(-1, 1)).exp()
        for source, of_source in zip(self.model.sources, zip(*latents, strict=True), strict=True):
            source.encoder.after_step_(source, of_source, minimum_)

    def _select(self, x: Tensor, bound: list[Tensor] | None) -> list[Selection]:
        if bound is None:
            return self.model.select(x, self.variant.bandwidth)
        triples = zip(self.model.sources, self.model.inputs(x), bound, strict=True)
        return [Selection(source.above(x_of, least)) for source, x_of, least in triples]

    def _prefixes(self, generator: torch.Generator | None) -> tuple[tuple[int, ...], Tensor]:
        """Return the prefixes whose errors count at this step, and their weights."""
        config, count = self._sharing.config(self.model), self.variant.sampled_prefixes
        if not (count and config.prefixes):
            return config.prefixes or (config.d_hidden,), self._weights / self._weights.sum()
        # Log-uniform between the smallest prefix and all: each doubling is as likely as the next.
        ratio = config.d_hidden / config.prefixes[0]
        drawn = config.prefixes[0] * ratio ** torch.rand(count, generator=generator)
        sizes = sorted({*drawn.round().int().tolist(), config.d_hidden})
        return tuple(sizes), torch.full((len(sizes),), 1 / len(sizes))

    def _separately(self, latents: list[SparseLatents], target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each group's error in what the groups before leave; no gradient passes between groups."""
        total, residual = target.new_zeros(()), target
        weights = self._weights / self._weights.sum()
        everything = (self._sharing.config(self.model).d_hidden,)
        for group, weight in zip(self.model.config.groups, weights.tolist(), strict=True):
            entries = [kernels.between(of_source, group.start, group.stop) for of_source in latents]
            errors, residual = self._sharing.squared_errors(self.model, entries, residual, everything)
            total = total + weight * errors[-1]
        return total, errors[-1], residual

    def _sample(self, model: Transcoder, generator: torch.Generator) -> Float[Tensor, "rows d_out"]:
        """Return some decoder rows of all latents, all if they are few."""
        count = self._sharing.config(model).d_hidden
        if count <= ROWS_COMPARED and self._sharing.processes == 1:
            return model.W_dec
        drawn = torch.randperm(count, generator=generator)[:ROWS_COMPARED] if count > ROWS_COMPARED else None
        chosen = torch.arange(count) if drawn is None else drawn
        return self._sharing.decoder_rows(model, chosen.to(model.W_dec.device))
