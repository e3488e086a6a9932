"""Ours in circuit-tracer's terms: raw units, and TopK as JumpReLU with calibrated thresholds."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.core.files import rounded
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.transcoder import Transcoder
from transcoders.formats.convert import CALIBRATED, Candidates, Exported, Samples, as_jumprelu, needed


def folded(model: CrossLayerTranscoder) -> CrossLayerTranscoder:
    """Return the same function with scales of 1: raw x in, raw y out, latents unchanged."""
    config, d = model.config, model.config.d_model
    scales_in, scales_out = (torch.tensor(s, dtype=torch.float64) for s in (config.input_scales, config.output_scales))
    sources = []
    for number, source in enumerate(model.sources):
        targets = config.targets(number)
        of_targets = scales_out[targets.start : targets.stop].repeat_interleave(d)
        factors = {"W_enc": 1 / scales_in[number], "W_dec": of_targets}
        raw = Transcoder(source.config)
        state = {
            n: (v.double() * factors.get(n, torch.ones(())).to(v.device)).to(v) for n, v in source.named_parameters()
        }
        raw.load_state_dict(state, assign=True)
        sources.append(raw)
    ones = (1.0,) * len(config.layers)
    result = CrossLayerTranscoder(config.model_copy(update={"input_scales": ones, "output_scales": ones}), sources)
    result.b_dec.data = (model.b_dec.double().cpu() * scales_out.repeat_interleave(d)).to(model.b_dec)
    if config.skip:
        result.W_skip.data = (model.W_skip.double().cpu() * (scales_out / scales_in)[:, None, None]).to(model.W_skip)
    return result.to(model.b_dec.device).requires_grad_(False)


def as_thresholded(model: CrossLayerTranscoder, samples: Samples | None) -> Exported[CrossLayerTranscoder]:
    """Convert for formats without TopK: exactly, or to JumpReLU with calibrated thresholds.

    Raises:
        UserError: it must be calibrated, and there are no activations to do it on.
    """
    raw = folded(model)
    if not raw.encoder.fixed_k:
        jumps = raw.encoder.has_threshold
        same = _jumprelu(raw, [source.threshold for source in raw.sources]) if jumps else raw
        return Exported(same, {"exact": True})
    samples = needed(samples, "per-token TopK is exported as JumpReLU, whose thresholds are calibrated")
    calibrated = _jumprelu(raw, calibrate(raw, samples))
    return Exported(calibrated, fidelity(raw, calibrated, samples, CALIBRATED))


def _jumprelu(raw: CrossLayerTranscoder, thresholds: Sequence[Tensor]) -> CrossLayerTranscoder:
    changes: dict[str, Any] = {"encoder": "jumprelu", "budget": "layer", "prefixes": (), "prefix_k": ()}
    sources = [as_jumprelu(source, threshold) for source, threshold in zip(raw.sources, thresholds, strict=True)]
    result = CrossLayerTranscoder(raw.config.model_copy(update=changes), sources).to(raw.b_dec.device)
    result.b_dec.data = raw.b_dec.data
    if raw.config.skip:
        result.W_skip.data = raw.W_skip.data
    return result.requires_grad_(False)


@torch.inference_mode()
def calibrate(model: CrossLayerTranscoder, samples: Samples) -> list[Float[Tensor, "d_hidden"]]:
    """Return each layer's thresholds, which let through what TopK does, as nearly as one number a latent can."""
    candidates = [Candidates(source) for source in model.sources]
    for batch in samples.calibration():
        for of_layer, latents in zip(candidates, model.encode_sources(batch.x), strict=True):
            of_layer.lower_(latents)
    for batch in samples.calibration():
        inputs, chosen = model.inputs(batch.x), model.encode_sources(batch.x)
        for of_layer, x, latents in zip(candidates, inputs, chosen, strict=True):
            of_layer.gather_(x, latents)
    return [of_layer.thresholds() for of_layer in candidates]


class Unexplained:
    """Add up, over batches, what the fraction of variance unexplained of each layer is made of."""

    def __init__(self, config: CrossLayerConfig) -> None:
        """Begin with no token."""
        self.tokens, self.shape = 0, (-1, len(config.layers), config.d_model)
        self.errors = torch.zeros(len(config.layers), dtype=torch.float64)
        self.sums = torch.zeros(self.shape[1:], dtype=torch.float64)
        self.squares = torch.zeros(len(config.layers), dtype=torch.float64)

    def add_(self, y_hat: Float[Tensor, "tokens width"], y: Float[Tensor, "tokens width"]) -> None:
        """Take a batch of all layers' outputs."""
        wanted = y.view(self.shape).double().cpu()
        self.tokens += len(wanted)
        self.errors += (y_hat.view(self.shape).double().cpu() - wanted).square().sum((0, 2))
        self.sums += wanted.sum(0)
        self.squares += wanted.square().sum((0, 2))

    def mean(self) -> float:
        """Return the mean over layers."""
        return float((self.errors / (self.squares - self.sums.square().sum(1) / self.tokens)).mean())


@torch.inference_mode()
def fidelity(
    original: CrossLayerTranscoder, exported: CrossLayerTranscoder, samples: Samples, method: str
) -> dict[str, Any]:
    """Measure how far ``exported`` is from ``original`` (both in raw units) on held-out tokens.

    Fractions of variance are means over layers, L0 is of all layers together.
    """
    before, after, between = (Unexplained(original.config) for _ in range(3))
    active_before = active_after = 0
    for batch in samples.test():
        z_before, z_after = original.encode_sources(batch.x), exported.encode_sources(batch.x)
        active_before += sum(int((latents.values > 0).sum()) for latents in z_before)
        active_after += sum(int((latents.values > 0).sum()) for latents in z_after)
        y_before, y_after = original.decode_sources(z_before, batch.x), exported.decode_sources(z_after, batch.x)
        before.add_(y_before, batch.y)
        after.add_(y_after, batch.y)
        between.add_(y_after, y_before)
    figures = {
        "l0_original": active_before / before.tokens,
        "l0": active_after / before.tokens,
        "fvu_original": before.mean(),
        "fvu": after.mean(),
        "fvu_of_original_output": between.mean(),
    }
    return {"exact": False, "method": method, "tokens": before.tokens, **rounded(figures)}
