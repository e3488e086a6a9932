"""What a step minimises: the (nested) reconstruction error, and what keeps latents sparse, alive, apart."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders import kernels
from transcoders.core.devices import multiplies_bf16
from transcoders.dictionary.transcoder import FIXED_K, Transcoder
from transcoders.distributed.ranks import ALONE, Ranks
from transcoders.kernels import SparseLatents, SquaredErrors
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.sliced.objective import sliced_auxk, sliced_rows, sliced_squared_errors
from transcoders.training.sliced.selection import kth_largest
from transcoders.training.sliced.transcoder import SlicedTranscoder

THRESHOLD_RATE = 0.1
"""Of batchtopk's running mean of the smallest activation that it keeps."""
PRESSURE_RATE = 0.02
"""At most so much, in natural logs, the weight of relu's L1 and jumprelu's L0 penalty changes in a step."""
FIRST_PRESSURE = 1e-3
BUCKETS_PER_K = 8
ROWS_COMPARED = 512
"""Decoder rows on either side of the orthogonality penalty at a step: a sample of all pairs."""


class Losses(NamedTuple):
    """Of some tokens (normalised units), with the latents that made them."""

    total: Float[Tensor, ""]
    """What is minimised, AuxK and penalties on weights excepted."""
    nmse: Float[Tensor, ""]
    """Mean squared error per dimension of all latents' reconstruction, where mean ||y||^2 = d_out."""
    l1: Float[Tensor, ""]
    latents: SparseLatents
    residual: Float[Tensor, "tokens d_out"]


class Objective:
    """The losses of ``model`` as ``variant`` and ``settings`` want them.

    ``pressure``, the weight of the sparsity penalty, is the only state (a checkpoint keeps it).
    """

    def __init__(
        self, model: Transcoder, settings: TrainSettings, variant: VariantSettings, ranks: Ranks = ALONE
    ) -> None:
        """Of a whole transcoder or of the part that a stage trains."""
        self._ranks = ranks
        self.model, self.settings, self.variant = model, settings, variant
        self.pressure = model.W_enc.new_tensor(settings.lambda_sparsity)
        self._seeks_k = variant.encoder == "jumprelu" or (variant.encoder == "relu" and not settings.lambda_sparsity)
        if self._seeks_k:
            self.pressure.fill_(FIRST_PRESSURE)
        device = model.W_enc.device  # on CUDA autocast decides
        self._aux_in_bf16 = device.type == "cpu" and settings.precision != "float32" and multiplies_bf16(device)
        given = torch.tensor(variant.prefix_weights[: max(1, len(model.config.prefixes))], dtype=torch.float64)
        self._weights = given if given.sum() > 0 else torch.ones(len(model.config.groups), dtype=torch.float64)

    def losses(
        self,
        x: Float[Tensor, "tokens d_in"],
        y: Float[Tensor, "tokens d_out"],
        bound: Float[Tensor, "d_hidden"] | None = None,
        generator: torch.Generator | None = None,
        dead: Int[Tensor, "dead"] | None = None,
    ) -> Losses:
        """Losses of normalised ``x`` and ``y``.

        ``bound`` is what ``batch_bound`` said of the whole batch, if ``x`` is a part of one;
        ``generator`` draws the prefixes, where they are sampled; ``dead`` is what ``aux`` will ask for.
        """
        model = self.model
        latents, l0 = self._encode(x, bound, dead)
        target = y - model.b_dec - (x @ model.W_skip.T if model.config.skip else 0.0)
        if self.variant.stop_gradient:
            total, nmse, residual = self._separately(latents, target)
        else:
            sizes, weights = self._prefixes(generator)
            errors, residual = self._squared_errors(latents, target, sizes)
            total, nmse = (errors * weights.to(errors)).sum(), errors[-1]
        l1 = model.team.summed(latents.values.sum() / len(x))
        if l0 is not None:
            total = total + self.pressure * model.team.summed(l0.mean())
        elif self.pressure > 0:
            total = total + self.pressure * l1
        return Losses(total, nmse.detach(), l1.detach(), latents, residual)

    def aux(
        self,
        x: Float[Tensor, "tokens d_in"],
        residual: Float[Tensor, "tokens d_out"],
        dead: Tensor,
        variance: Float[Tensor, ""],
        watched: Float[Tensor, "tokens dead"] | None = None,
    ) -> Float[Tensor, ""]:
        """AuxK of the ``dead`` latents over ``variance``, that of the whole batch's residual.

        ``watched`` are their pre-activations, if ``losses`` kept them.
        """
        model = self.model
        if isinstance(model, SlicedTranscoder):
            return sliced_auxk(model, x, residual, dead, variance)
        weights = (model.W_enc, model.b_enc, model.W_dec)
        if self._aux_in_bf16:
            x = x.bfloat16()
        return kernels.auxk(x, residual, *weights, dead, self._k_aux(dead), self.settings.backend, variance, watched)

    def orthogonality(self, generator: torch.Generator, earlier: Transcoder | None) -> Float[Tensor, ""] | None:
        """The weighted penalty on decoder rows that point the same way, from a sample of them.

        With ``earlier`` latents: the mean over new rows of ``sum_j cos^2`` to them. Without: the mean
        over rows of the largest cos^2 to another row of the sample (OrtSAE, arXiv 2509.22033).
        """
        if self.variant.orthogonality != "penalty":
            return None
        own = self._sample(self.model, generator)
        if earlier is not None:
            others = self._sample(earlier, generator)
            total = (own @ others.T).square().sum(1).mean() * (earlier.whole.d_hidden / len(others))
        elif self.variant.training == "progressive":
            return None  # the first stage has nothing to keep apart from
        else:
            cosines = (own @ own.T).fill_diagonal_(0.0)
            total = cosines.square().amax(1).mean()
        return self.variant.orthogonality_coefficient * total

    @torch.no_grad()
    def batch_bound(self, parts: list[Float[Tensor, "tokens d_in"]]) -> Float[Tensor, "d_hidden"] | None:
        """The threshold that makes batchtopk choose the same from the parts of a batch as from the whole."""
        if self.variant.encoder != "batchtopk":
            return None
        if self._ranks.world.size > 1:
            return self._bound_of_all(parts)
        if len(parts) == 1:
            return None
        config, tokens = self.model.config, sum(map(len, parts))
        bounds = []
        for group in config.groups:
            W, b = self.model.W_enc[group.start : group.stop], self.model.b_enc[group.start : group.stop]
            kept = []
            for x in parts:
                k = min(group.stop - group.start, -(-group.k * tokens // len(x)))
                kept.append(kernels.batchtopk_encode(x, W, b, k, self.settings.backend).values)
            smallest = torch.cat(kept).topk(group.k * tokens).values[-1]
            bounds.append(smallest.nextafter(torch.zeros_like(smallest)).expand(len(b)))
        return torch.cat(bounds)

    def _bound_of_all(self, parts: list[Float[Tensor, "tokens d_in"]]) -> Float[Tensor, "d_hidden"]:
        """The same, from each rank's largest; more of them where one rank has more than its share."""
        model, settings = self.model, self.settings
        bounds = []
        for W, b, k in model.encoders():
            own_k = min(len(W), 2 * -(-k // model.team.size))
            while True:
                kept = [kernels.batchtopk_encode(x, W, b, own_k, settings.backend).values for x in parts]
                bound = kth_largest(torch.cat(kept), k * settings.batch_size, self._ranks.world)
                cut_off = own_k < len(W) and any(values.amin() > bound for values in kept)
                if not self._ranks.world.total(int(cut_off), W.device):
                    break
                own_k = min(len(W), 2 * own_k)
            bounds.append(bound.nextafter(torch.zeros_like(bound)).expand(len(b)))
        return torch.cat(bounds)

    @torch.no_grad()
    def after_step(self, latents: list[SparseLatents], l0: Float[Tensor, ""]) -> None:
        """Move batchtopk's threshold and the sparsity penalty's weight by what the batch showed."""
        config, variant = self.model.config, self.variant
        excess = l0 / config.k - 1
        if self._seeks_k:
            self.pressure = self.pressure * (PRESSURE_RATE * excess.clamp(-1, 1)).exp()
        elif variant.encoder == "batchtopk":
            values = torch.cat([part.values for part in latents])
            indices = torch.cat([part.indices for part in latents])
            values = torch.where(values > 0, values, torch.inf)
            for group in config.groups:
                inside = (indices >= group.start) & (indices < group.stop)
                smallest = self._ranks.world.min_(torch.where(inside, values, torch.inf).amin())
                own = self.model.threshold[group.start : group.stop]
                own += THRESHOLD_RATE * torch.where(smallest.isfinite(), smallest - own, 0.0)

    def _k_aux(self, dead: Tensor) -> int:
        return min(self.model.config.d_out // 2, len(dead))

    def _encode(self, x: Tensor, bound: Tensor | None, dead: Tensor | None) -> tuple[SparseLatents, Tensor | None]:
        model, settings = self.model, self.settings
        config, backend = model.config, settings.backend
        if config.encoder == "jumprelu":
            return kernels.jumprelu_encode(
                x, model.W_enc, model.b_enc, model.threshold, self.variant.bandwidth, backend
            )  # fmt: skip
        if bound is not None:
            return kernels.threshold_encode(x, model.W_enc, model.b_enc, bound, backend), None
        if config.encoder == "topk" and settings.selection == "bucketed" and not config.prefixes:
            buckets = BUCKETS_PER_K * config.k
            return kernels.bucketed_encode(x, model.W_enc, model.b_enc, config.k, buckets, backend), None
        if config.encoder in (*FIXED_K, "batchtopk"):
            known = dead is not None and len(dead) and kernels.auxk_is_dense(self._k_aux(dead), len(dead))
            return model.chosen(x, backend, dead if known else None), None
        return model.encode_normalised(x, backend), None

    def _squared_errors(self, latents: SparseLatents, target: Tensor, sizes: tuple[int, ...] = ()) -> SquaredErrors:
        """Mean squared error of each prefix, ``sizes`` being of the whole dictionary; with none, of all latents."""
        model, backend = self.model, self.settings.backend
        if isinstance(model, SlicedTranscoder):
            return sliced_squared_errors(model, latents, target, sizes or (model.whole.d_hidden,), backend)
        return kernels.squared_errors(latents, model.W_dec, target, sizes, backend=backend)

    def _prefixes(self, generator: torch.Generator | None) -> tuple[tuple[int, ...], Tensor]:
        config, count = self.model.whole, self.variant.sampled_prefixes
        if not (count and config.prefixes):
            return config.prefixes or (config.d_hidden,), self._weights / self._weights.sum()
        # Log-uniform between the smallest prefix and all: each doubling is as likely as the next.
        ratio = config.d_hidden / config.prefixes[0]
        drawn = config.prefixes[0] * ratio ** torch.rand(count, generator=generator)
        sizes = sorted({*drawn.round().int().tolist(), config.d_hidden})
        return tuple(sizes), torch.full((len(sizes),), 1 / len(sizes))

    def _separately(self, latents: SparseLatents, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each group's error in what the groups before leave; no gradient passes between groups."""
        total, residual = target.new_zeros(()), target
        weights = self._weights / self._weights.sum()
        for group, weight in zip(self.model.config.groups, weights.tolist(), strict=True):
            own = kernels.between(latents, group.start, group.stop)
            errors, residual = self._squared_errors(own, residual)
            total = total + weight * errors[-1]
        return total, errors[-1], residual

    @staticmethod
    def _sample(model: Transcoder, generator: torch.Generator) -> Float[Tensor, "rows d_out"]:
        count = model.whole.d_hidden
        chosen = torch.arange(count)
        if count > ROWS_COMPARED:
            chosen = torch.randperm(count, generator=generator)[:ROWS_COMPARED]
        elif not isinstance(model, SlicedTranscoder):
            return model.W_dec
        chosen = chosen.to(model.W_dec.device)
        return sliced_rows(model, chosen) if isinstance(model, SlicedTranscoder) else model.W_dec[chosen]
