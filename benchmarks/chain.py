"""A Boolean chain A → B → C over three layers: who writes a circuit of three hops as fewer?

"Cross-Layer Transcoders are incentivized to learn Unfaithful Circuits" (openreview 8sE1yCPnbR): a latent of the first
layer can write B and C to the outputs of the later ones, though the model computes B from A, and C from B. Here the
model's MLPs are that computation and nothing else, so the true length of every path is known.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import over_seeds
from transcoders.activations.layers import LayersBatch
from transcoders.activations.reader import Batch, LabelledBatch
from transcoders.circuits.attribution import Targets, attribute
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import Output, path_length
from transcoders.circuits.parts import ModelParts, take_apart
from transcoders.circuits.settings import CircuitSettings
from transcoders.circuits.writers import Transcoders, writers_of
from transcoders.training.config import config_of, cross_layer_config_of
from transcoders.training.crosslayer import start_of_layers
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.start import Start, measure, sample_of
from transcoders.training.trainer import Job, Trainer

LAYERS, WIDTH, CHAINS = 3, 64, 3
VOCABULARY = 4096
SIZES = (4, 2, 1)
"""Features A, B and C of a chain: each B needs two of the A, and C both B."""
DEPTH = LAYERS + 1
"""Edges from a token to a logit through one latent of each layer: the true length."""
CONSTANT = 8.0
"""Length of what all embeddings share, which keeps the norms' denominators alike."""
SETTINGS = TrainSettings(d_hidden=32, k=6, epochs=1, learning_rate=2e-3, validate_every=10**6, dead_after_tokens=20_000)
WAYS = {
    "per layer, topk": VariantSettings(),
    "per layer, jumprelu": VariantSettings(encoder="jumprelu"),
    "CLT, topk": VariantSettings(reach="all"),
    "CLT, jumprelu": VariantSettings(encoder="jumprelu", reach="all"),
    "CLT, jumprelu, tanh penalty": VariantSettings(encoder="jumprelu", reach="all", tanh_penalty=1.0),
}
PROMPTS = 60


class Chain(NamedTuple):
    """Hold the model, what its tokens mean, and the features' directions."""

    parts: ModelParts
    fires: Int[Tensor, "vocabulary chains A"]
    tokens: Float[Tensor, "chains A d"]
    """What each A that a token will have adds to its embedding."""
    features: tuple[Float[Tensor, "chains size d"], ...]
    """What A, B and C add to the residual stream, at layers 0, 1 and 2."""

    @property
    def complete(self) -> Int[Tensor, "prompts 2"]:
        """Return the tokens with which a chain reaches C, and which chain."""
        return torch.nonzero(self.fires.all(2))


class Result(NamedTuple):
    """Say what a set of transcoders makes of the chain."""

    nmse: float
    skipped_hops: float
    path_length: float
    """From tokens to the logit of C; in truth DEPTH."""


class And(nn.Module):
    """Compute Boolean features: one is written where all ``needed`` features that it reads are there."""

    def __init__(self, reads: Float[Tensor, "features d"], needed: int, writes: Float[Tensor, "features d"]) -> None:
        """Keep the directions; a feature is 1 from ``needed`` - 0.6 on, as the norm makes them a little shorter."""
        super().__init__()
        self.reads, self.needed, self.writes = reads, needed, writes

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return the sum of what the features write."""
        return (10 * (x @ self.reads.T - self.needed + 0.6)).clamp(0, 1) @ self.writes


@torch.no_grad()
def chain_of(seed: int) -> Chain:
    """Return a model without attention whose MLPs compute A of the token, B of A, and C of B."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    counts = [CHAINS * size for size in (SIZES[0], *SIZES)]
    tokens, *features = (part.unflatten(0, (CHAINS, -1)) for part in basis[: sum(counts)].split(counts))
    constant, rest = basis[sum(counts)], basis[sum(counts) + 1 :]
    state = torch.rand(VOCABULARY, CHAINS, 1, generator=generator)
    some = torch.rand(VOCABULARY, CHAINS, SIZES[0], generator=generator) < 0.5
    fires = (state < 0.25) | ((state > 0.6) & some)
    noise = 0.3 * torch.randn(VOCABULARY, len(rest), generator=generator) @ rest
    embedding = CONSTANT * constant + torch.einsum("vca,cad->vd", fires.float(), tokens) + noise

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    model.model.embed_tokens.weight.copy_(embedding)
    model.lm_head.weight.zero_()
    model.lm_head.weight[1 : CHAINS + 1] = features[2][:, 0]
    for layer, reads, writes in zip(model.model.layers, (tokens, *features), features, strict=False):
        layer.self_attn.o_proj.weight.zero_()
        joined = reads.unflatten(1, (writes.shape[1], -1))
        layer.mlp = And(joined.sum(2).flatten(0, 1), joined.shape[2], writes.flatten(0, 1))
    return Chain(take_apart(model), fires, tokens, tuple(features))


@torch.no_grad()
def activations(chain: Chain) -> Batch:
    """Return x and y of all layers side by side, on each word of the vocabulary as the second token."""
    x: list[Tensor] = []
    y: list[Tensor] = []
    words = torch.arange(VOCABULARY)
    handles = []
    for layer in chain.parts.layers:
        handles.append(layer.mlp_in.register_forward_hook(lambda module, arguments, out: x.append(out[:, 1])))
        handles.append(layer.mlp_out.register_forward_hook(lambda module, arguments, out: y.append(out[:, 1])))
    chain.parts.model.base_model(torch.stack([torch.zeros_like(words), words], 1))
    for handle in handles:
        handle.remove()
    return Batch(torch.cat(x, 1), torch.cat(y, 1))


class Reader:
    """Give words drawn at random in batches, as the trainer reads them."""

    seconds_waited = 0.0

    def __init__(self, rows: Batch, batch_size: int, tokens: int, seed: int) -> None:
        self._rows, self._seed, self.batch_size = rows, seed, batch_size
        self.tokens, self.batches_per_epoch = tokens, tokens // batch_size

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """Yield batches from number ``first`` on."""
        while True:
            generator = torch.Generator().manual_seed(self._seed * 10**6 + first)
            chosen = torch.randint(len(self._rows.x), (self.batch_size,), generator=generator)
            yield Batch(self._rows.x[chosen], self._rows.y[chosen])
            first += 1


def train(rows: Batch, variant: VariantSettings, tokens: int, seed: int) -> Transcoders:
    """Train a cross-layer transcoder, or one transcoder for each layer, on so many tokens."""
    nothing = np.zeros(len(rows.x), np.int32)
    if variant.reach is not None:
        of_layers = zip(rows.x.split(WIDTH, 1), rows.y.split(WIDTH, 1), strict=True)
        statistics_of = [measure([LabelledBatch(x, y, nothing, nothing)]) for x, y in of_layers]
        start = start_of_layers(statistics_of, [LayersBatch(rows.x, rows.y, nothing)], seed)
        config = cross_layer_config_of(SETTINGS, variant, WIDTH, dict(enumerate(start.statistics)), {})
        return _trained(config, variant, rows, start, tokens, seed)
    transcoders = {}
    for layer, of_layer in enumerate(zip(*(part.split(WIDTH, 1) for part in rows), strict=True)):
        batch = Batch(*(part.contiguous() for part in of_layer))
        sample = [LabelledBatch(batch.x, batch.y, nothing, nothing)]
        statistics = measure(sample)
        config = config_of(SETTINGS, variant, WIDTH, statistics, {})
        start = Start(statistics, sample_of(sample), seed)
        transcoders[layer] = _trained(config, variant, batch, start, tokens, seed)
    return transcoders


def _trained(config: Any, variant: VariantSettings, rows: Batch, start: Any, tokens: int, seed: int) -> Any:
    with TemporaryDirectory() as folder:
        reader = Reader(rows, SETTINGS.batch_size, tokens, seed)
        place = Path(folder) / "c"
        job = Job(config, SETTINGS, variant, reader, start, [rows], place, torch.device("cpu"), 10**6)
        return Trainer(job).train().model.requires_grad_(False)


def judge(chain: Chain, transcoders: Transcoders, rows: Batch, prompts: int = PROMPTS) -> Result:
    """Trace the logit of C on words with which a chain is complete; measure the rest on all words."""
    shared = chain.parts.model.get_input_embeddings().weight.mean(0)
    chosen = chain.complete[:: max(1, len(chain.complete) // prompts)][:prompts]
    lengths = []
    for word, number in chosen.tolist():
        frozen = freeze(chain.parts, transcoders, torch.tensor([0, word]))
        frozen = frozen._replace(embedding=frozen.embedding - shared)  # what all tokens share causes nothing
        direction = chain.parts.unembedding[1 + number]
        graph = attribute(frozen, Targets([Output("C", 1 + number, 1.0, 0.0)], direction[None]), CircuitSettings())
        lengths.append(path_length(graph))
    return Result(nmse_of(transcoders, rows), skipped_hops(chain, transcoders, rows), mean(lengths))


@torch.no_grad()
def skipped_hops(chain: Chain, transcoders: Transcoders, rows: Batch) -> float:
    """Return the share of what latents write along B and C, where these fire, that earlier layers' latents write.

    The model computes B from A in layer 1 and C from B in layer 2: a latent of an earlier layer that writes them has
    skipped the hop. A transcoder of one layer cannot, though its encoder may read what comes before A.
    """
    x, y = (part.unflatten(1, (LAYERS, -1)) for part in rows)
    early = total = 0.0
    for number, writer in writers_of(transcoders).items():
        latents = writer.encode(x[:, number]).dense()
        for (target, decoder), scale in zip(writer.decoders().items(), writer.output_scales, strict=True):
            if target == 0:
                continue
            directions = chain.features[target].flatten(0, 1)
            fires = y[:, target] @ directions.T > 0.5
            written = float((latents @ (decoder @ directions.T) * scale)[fires].abs().sum())
            total += written
            early += written * (number < target)
    return early / total


@torch.no_grad()
def nmse_of(transcoders: Transcoders, rows: Batch) -> float:
    """Return the error of each layer's y as a share of its variance, mean over layers."""
    x, y = (part.unflatten(1, (LAYERS, -1)) for part in rows)
    if isinstance(transcoders, Mapping):
        y_hat = torch.stack([transcoders[layer](x[:, layer]) for layer in range(LAYERS)], 1)
    else:
        y_hat = transcoders(x)
    return float(((y_hat - y).square().sum((0, 2)) / (y - y.mean(0)).square().sum((0, 2))).mean())


def run(tokens: int = 200_000, seeds: int = 3) -> list[str]:
    """Return a row for each way to train: means over seeds, each of a model of its own."""
    results: dict[str, list[Result]] = {way: [] for way in WAYS}
    for seed in tqdm(range(seeds), desc="chains", unit="model"):
        chain = chain_of(seed)
        rows = activations(chain)
        for way, variant in WAYS.items():
            results[way].append(judge(chain, train(rows, variant, tokens, seed), rows))
    return [f"| {way} | {' | '.join(map(over_seeds, zip(*of, strict=True)))} |" for way, of in results.items()]
