"""Ours in other people's terms: raw units, and an activation that their format has."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transcoders import kernels
from transcoders.core.errors import UserError
from transcoders.core.files import rounded
from transcoders.dictionary.dictionary import Dictionary
from transcoders.dictionary.transcoder import Transcoder
from transcoders.kernels import SparseLatents

MARGIN = 1e-3
"""A threshold that lets all candidates through, or none, stands this share apart from them."""
CALIBRATED = "JumpReLU with calibrated thresholds"
Model = TypeVar("Model", bound=Dictionary)


class Activations(Protocol):
    """Describe a batch of raw activations, of one layer or of several side by side."""

    @property
    def x(self) -> Float[Tensor, "tokens d_in"]:
        """Return what the MLP receives."""

    @property
    def y(self) -> Float[Tensor, "tokens d_out"]:
        """Return what its block adds."""


class Samples(NamedTuple):
    """Give activations to calibrate a threshold on, and others to measure the result on."""

    calibration: Callable[[], Iterable[Activations]]
    test: Callable[[], Iterable[Activations]]


class Exported(NamedTuple, Generic[Model]):
    """Hold a transcoder to write, and how faithful it is to the one that was trained."""

    model: Model
    fidelity: dict[str, Any]


def folded(model: Transcoder) -> Transcoder:
    """Return the same function with scales of 1: raw x in, raw y out, latents unchanged."""
    config = model.config
    raw = Transcoder(config.model_copy(update={"input_scale": 1.0, "output_scale": 1.0}))
    factors = {
        "W_enc": 1 / config.input_scale,
        "W_dec": config.output_scale,
        "b_dec": config.output_scale,
        "W_skip": config.output_scale / config.input_scale,
    }
    state = {name: (value.double() * factors.get(name, 1.0)).to(value) for name, value in model.named_parameters()}
    raw.load_state_dict(state, assign=True)
    return raw.requires_grad_(False)


def as_thresholded(model: Transcoder, samples: Samples | None) -> Exported[Transcoder]:
    """Convert for formats without TopK: exactly, or to JumpReLU with calibrated thresholds.

    Raises:
        UserError: it must be calibrated, and there are no activations to do it on.
    """
    raw = folded(model)
    if not raw.encoder.fixed_k:
        return Exported(as_jumprelu(raw, raw.threshold) if raw.encoder.has_threshold else raw, {"exact": True})
    samples = needed(samples, "per-token TopK is exported as JumpReLU, whose thresholds are calibrated")
    calibrated = as_jumprelu(raw, calibrate(raw, samples))
    return Exported(calibrated, fidelity(raw, calibrated, samples, CALIBRATED))


def as_topk(model: Transcoder, samples: Samples | None) -> Exported[Transcoder]:
    """Convert for formats with nothing but TopK: exactly, or to a plain TopK of the same k.

    Raises:
        UserError: its fidelity must be measured, and there are no activations to do it on.
    """
    raw = folded(model)
    if raw.encoder.fixed_k and len(raw.config.groups) == 1:
        return Exported(raw, {"exact": True})
    samples = needed(samples, "this transcoder is exported as plain TopK, whose fidelity is measured")
    plain = _with(raw, {"encoder": "topk", "prefixes": (), "prefix_k": ()}, {})
    return Exported(plain, fidelity(raw, plain, samples, f"plain TopK with k = {raw.config.k}"))


def needed(samples: Samples | None, what: str) -> Samples:
    """Return the samples.

    Raises:
        UserError: there are none, for ``what`` needs them.
    """
    if samples is None:
        raise UserError(f"{what} on activations of its layer: run `dvc repro split`, or say where they are with --data")
    return samples


def as_jumprelu(raw: Transcoder, threshold: Tensor) -> Transcoder:
    """Return a transcoder that shares the weights of ``raw``, with these thresholds in place of its encoder."""
    return _with(raw, {"encoder": "jumprelu", "prefixes": (), "prefix_k": ()}, {"threshold": threshold.clamp(min=0)})


def _with(model: Transcoder, config: dict[str, Any], weights: dict[str, Tensor]) -> Transcoder:
    changed = Transcoder(model.config.model_copy(update=config))
    state = {**model.state_dict(), **weights}
    changed.load_state_dict({name: state[name] for name in changed.state_dict()}, assign=True)
    return changed.requires_grad_(False)


@torch.inference_mode()
def calibrate(model: Transcoder, samples: Samples) -> Float[Tensor, "d_hidden"]:
    """Return for each latent the threshold that lets through what TopK does, as nearly as one number can.

    With p the pre-activations it minimises ``sum p^2`` over the tokens that are wrong: chosen by TopK but not
    above the threshold, or above it but not chosen. What TopK never chose gets the highest threshold of all.
    """
    candidates = Candidates(model)
    for batch in samples.calibration():
        candidates.lower_(model.encode(batch.x))
    for batch in samples.calibration():
        candidates.gather_(batch.x, model.encode(batch.x))
    return candidates.thresholds()


class Candidates:
    """Gather, batch by batch and twice over, the pre-activations between which thresholds are chosen."""

    def __init__(self, model: Transcoder) -> None:
        """Begin with none, for the latents of a raw-unit transcoder."""
        self.model = model
        self._least = torch.full((model.config.d_hidden,), torch.inf)
        self._gathered: list[tuple[Tensor, Tensor, Tensor]] = []

    def lower_(self, chosen: SparseLatents) -> None:
        """Take note of each latent's least chosen value: nothing below it matters."""
        self._least.scatter_reduce_(0, chosen.indices.long().cpu(), chosen.values.cpu(), "amin")

    def gather_(self, x: Float[Tensor, "tokens d_in"], chosen: SparseLatents) -> None:
        """Take the latents that TopK chose on a batch, and those of no less."""
        least = self._least.to(x) * (1 - MARGIN)
        above = kernels.threshold_encode(x, self.model.W_enc, self.model.b_enc, least)
        indices = above.indices.long()
        by_topk = chosen.dense()[above.rows(), indices] > 0
        self._gathered.append((indices.cpu(), above.values.cpu(), by_topk.cpu()))

    def thresholds(self) -> Float[Tensor, "d_hidden"]:
        """Return the best threshold of each latent."""
        indices, values, by_topk = (torch.cat(parts) for parts in zip(*self._gathered, strict=True))
        return _best_thresholds(indices, values, by_topk, self.model.config.d_hidden).to(self.model.W_enc)


def _best_thresholds(
    indices: Int[Tensor, "n"], values: Float[Tensor, "n"], by_topk: Bool[Tensor, "n"], d_hidden: int
) -> Float[Tensor, "d_hidden"]:
    """Return, of each latent's candidates, the cut with the least sum of squares on its wrong sides."""
    order = values.argsort()
    order = order[indices[order].argsort(stable=True)]
    values, by_topk, indices = values[order].double(), by_topk[order], indices[order]
    ends = torch.bincount(indices, minlength=d_hidden).cumsum(0)
    # A cut after entry j turns it and those before it away: right where TopK did too.
    gain = torch.where(by_topk, -1.0, 1.0) * values.square()
    threshold = torch.full((d_hidden,), torch.nan)
    for latent, (start, stop) in enumerate(pairwise([0, *ends.tolist()])):
        if start == stop:
            continue
        gained = gain[start:stop].cumsum(0)
        best = int(gained.argmax())
        # Halfway to the next candidate, so that rounding decides nothing.
        above = values[start + best + 1] if start + best + 1 < stop else values[start + best] * (1 + 2 * MARGIN)
        cut = (values[start + best] + above) / 2 if gained[best] > 0 else values[start] * (1 - MARGIN)
        threshold[latent] = cut.float()
    highest = threshold.nan_to_num(0.0).max()
    return torch.where(threshold.isnan(), highest, threshold)


@torch.inference_mode()
def fidelity(original: Transcoder, exported: Transcoder, samples: Samples, method: str) -> dict[str, Any]:
    """Measure how far ``exported`` is from ``original`` (both in raw units) on held-out tokens."""
    batches = list(samples.test())
    y = torch.cat([batch.y for batch in batches])
    before, after = ([model.forward_with_info(batch.x) for batch in batches] for model in (original, exported))
    y_before, y_after = (torch.cat([out.y_hat for out in outputs]) for outputs in (before, after))
    l0_before, l0_after = (torch.cat([out.l0 for out in outputs]).mean() for outputs in (before, after))
    figures = {
        "l0_original": l0_before,
        "l0": l0_after,
        "fvu_original": _fvu(y_before, y),
        "fvu": _fvu(y_after, y),
        "fvu_of_original_output": _fvu(y_after, y_before),
    }
    return {"exact": False, "method": method, "tokens": len(y), **rounded({k: float(v) for k, v in figures.items()})}


def _fvu(y_hat: Float[Tensor, "tokens d_out"], y: Float[Tensor, "tokens d_out"]) -> Tensor:
    return (y_hat - y).double().square().sum() / (y - y.mean(0)).double().square().sum()
