"""How fast a step across layers is: against as many steps of single layers, and against a dense autograd one."""

import torch
from torch.nn.functional import normalize

from benchmarks.measure import Step, interleaved, ratio
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.dictionary import Config, dictionary_of
from transcoders.training.objective import Objective
from transcoders.training.optimiser import Adam
from transcoders.training.settings import TrainSettings, VariantSettings

LAYERS, D, D_HIDDEN, K, BATCH = 18, 640, 1280, 16, 512
"""As in the preset clt."""
ROUNDS = 7


def run(device: torch.device) -> list[str]:
    """Return a row: the times of the three, and their ratios within rounds."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(BATCH, LAYERS * D, generator=generator).to(device) for _ in range(2))
    columns = [slice(n * D, (n + 1) * D) for n in range(LAYERS)]
    across = _ours(_cross_layer(), x, y)
    singles = [_ours(_single(), x[:, c].contiguous(), y[:, c].contiguous()) for c in columns]
    steps: dict[str, Step] = {
        "across layers": across,
        "single": lambda: [step() for step in singles],
        "dense": _dense(x.split(D, 1), y.split(D, 1)),
    }
    seconds = interleaved(steps, ROUNDS, device)
    times = [f"{1e3 * min(seconds[name]):.0f}" for name in steps]
    ratios = [f"{ratio(seconds, 'across layers', 'single'):.2f}×", f"{ratio(seconds, 'dense', 'across layers'):.1f}×"]
    return ["| " + " | ".join([f"{LAYERS} · {D}, {D_HIDDEN}, {K}, {BATCH}", *times, *ratios]) + " |"]


def _single() -> TranscoderConfig:
    return TranscoderConfig(d_in=D, d_out=D, d_hidden=D_HIDDEN, k=K)


def _cross_layer() -> CrossLayerConfig:
    ones = (1.0,) * LAYERS
    layers = tuple(range(LAYERS))
    return CrossLayerConfig(layers=layers, d_model=D, d_hidden=D_HIDDEN, k=K, input_scales=ones, output_scales=ones)


def _ours(config: Config, x: torch.Tensor, y: torch.Tensor) -> Step:
    """Return a step of our training: selection, errors, gradients, clipping and Adam, without AuxK."""
    model = dictionary_of(config).to(x.device)
    generator = torch.Generator().manual_seed(0)
    for source in model.sources:
        for weights in (source.W_enc, source.W_dec):
            weights.data.copy_(normalize(torch.randn(weights.shape, generator=generator)))
    objective, optimiser = Objective(model, TrainSettings(), VariantSettings()), Adam(model)

    def step() -> None:
        model.zero_grad()
        objective.losses(x, y).total.backward()
        optimiser.step_(3, 1e-4, 1.0)

    return step


def _dense(x: tuple[torch.Tensor, ...], y: tuple[torch.Tensor, ...]) -> Step:
    """Return a step as it is usually written: dense latents, a matrix product for each pair of layers, fused Adam."""
    device, generator = x[0].device, torch.Generator().manual_seed(0)

    def weights(*shape: int) -> torch.Tensor:
        return normalize(torch.randn(*shape, generator=generator)).to(device).requires_grad_()

    encoders = [weights(D_HIDDEN, D) for _ in range(LAYERS)]
    decoders = {(s, t): weights(D_HIDDEN, D) for s in range(LAYERS) for t in range(s, LAYERS)}
    optimiser = torch.optim.Adam([*encoders, *decoders.values()], lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        latents = []
        for x_of, W in zip(x, encoders, strict=True):
            best = (x_of @ W.T).topk(K)
            zeros = x_of.new_zeros(len(x_of), D_HIDDEN)
            latents.append(zeros.scatter(1, best.indices, best.values.relu()))
        made = [torch.stack([latents[s] @ decoders[s, t] for s in range(t + 1)]).sum(0) for t in range(LAYERS)]
        errors = [(y_of - y_hat).square().mean() for y_of, y_hat in zip(y, made, strict=True)]
        torch.stack(errors).mean().backward()
        torch.nn.utils.clip_grad_norm_([*encoders, *decoders.values()], 1.0)
        optimiser.step()

    return step
