"""The cross-layer transcoder: latents read one layer's MLP input and write to that and later layers' MLP outputs.

Anthropic, "Circuit Tracing" (2025); Gemma Scope 2 paper, section 2.6.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transcoders import kernels
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.encoders import Encoder, Selection
from transcoders.dictionary.transcoder import Transcoder
from transcoders.kernels import SparseLatents
from transcoders.kernels import crosslayer as cross_kernels
from transcoders.kernels.latents import Source

CANDIDATES = 4
"""Times k, of each layer, among which the largest of a token's latents over all layers are sought first."""


class CrossLayerTranscoder(nn.Module):
    """Compute ``y_hat^l = sum over s <= l of z^s W_dec^(s -> l) + b_dec^l [+ x^l W_skip^lT]``.

    Weights are in normalised units, a scale for each layer. Calls take and give raw activations, ``[…, layers,
    d_model]``. What is called normalised has all layers of a token side by side, ``[tokens, layers · d_model]``.
    """

    sources: Sequence[Transcoder]
    input_scales: Tensor
    output_scales: Tensor
    b_dec: nn.Parameter
    W_skip: nn.Parameter

    def __init__(self, config: CrossLayerConfig, sources: Sequence[Transcoder] = ()) -> None:
        """Allocate zero weights: per layer W_enc [F, d], b_enc [F], W_dec [F, targets · d]; b_dec, W_skip of all.

        Latents that there are already are given as ``sources``; their own b_dec stays zero, and is not used.
        """
        super().__init__()
        self.config = config
        layers, d = len(config.layers), config.d_model
        made = sources or [Transcoder(config.source(number)) for number in range(layers)]
        self.sources = nn.ModuleList(made)  # type: ignore[assignment]
        self.b_dec = nn.Parameter(torch.zeros(layers * d))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(layers, d, d))
        for name in ("input_scales", "output_scales"):
            scales = torch.tensor(getattr(config, name), dtype=torch.float32)
            self.register_buffer(name, scales.repeat_interleave(d), persistent=False)

    @property
    def encoder(self) -> Encoder:
        """Return the encoder, which chooses each layer's latents."""
        return self.sources[0].encoder

    @property
    def firsts(self) -> range:
        """Return the first column that each layer's latents write to."""
        return range(0, self.width, self.config.d_model)

    @property
    def width(self) -> int:
        """Return the numbers in a row of outputs."""
        return self.config.width

    def inputs(self, x: Float[Tensor, "tokens width"]) -> list[Float[Tensor, "tokens d_model"]]:
        """Return what each layer's encoder reads of normalised ``x``."""
        return [part.contiguous() for part in x.split(self.config.d_model, dim=1)]

    def normalised(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return raw rows of all layers in the units that the weights expect."""
        return x / self.input_scales, y / self.output_scales

    def target(self, x: Float[Tensor, "tokens width"], y: Float[Tensor, "tokens width"]) -> Tensor:
        """Return what the latents are to make of normalised ``y``: all but the biases and the skip connection."""
        return y - self.b_dec - self._skipped(x)

    def select(self, x: Float[Tensor, "tokens width"], bandwidth: float) -> list[Selection]:
        """Return each layer's latents of a training batch."""
        if self.config.budget == "token":
            return [Selection(latents) for latents in self._largest_of_tokens(self.inputs(x))]
        pairs = zip(self.sources, self.inputs(x), strict=True)
        return [source.encoder.select(source, x_of, bandwidth) for source, x_of in pairs]

    def encode_sources(self, x: Float[Tensor, "tokens width"]) -> list[SparseLatents]:
        """Return each layer's latents of normalised inputs, a token's not depending on the other tokens."""
        if self.config.budget == "token":
            return self._largest_of_tokens(self.inputs(x))
        return [source.encode_normalised(x_of) for source, x_of in zip(self.sources, self.inputs(x), strict=True)]

    def decode_sources(self, latents: Sequence[SparseLatents], x: Float[Tensor, "tokens width"]) -> Tensor:
        """Return the normalised reconstruction of all layers; ``x`` (normalised) feeds the skip connection, if any."""
        y_hat = self.sources[0].over_slices(cross_kernels.decode_sources(self.written(latents), self.width))
        return y_hat + self.b_dec + self._skipped(x)

    def written(self, latents: Sequence[SparseLatents]) -> list[Source]:
        """Return the latents of each layer with their decoder."""
        return [Source(z, s.W_dec, first) for z, s, first in zip(latents, self.sources, self.firsts, strict=True)]

    def encode(self, x: Float[Tensor, "*batch layers d_model"]) -> list[SparseLatents]:
        """Return each layer's latents of raw MLP inputs; batch dimensions are flattened to tokens."""
        return self.encode_sources(x.reshape(-1, self.config.width) / self.input_scales)

    def forward(self, x: Float[Tensor, "*batch layers d_model"]) -> Float[Tensor, "*batch layers d_model"]:
        """Return the predicted MLP outputs of raw MLP inputs, in the shape of ``x``."""
        normalised = x.reshape(-1, self.config.width) / self.input_scales
        y_hat = self.decode_sources(self.encode_sources(normalised), normalised)
        return (y_hat * self.output_scales).reshape(x.shape)

    def squared_error(self, x: Float[Tensor, "tokens width"], y: Float[Tensor, "tokens width"]) -> float:
        """Return the squared error on raw activations, in normalised units, summed over tokens and layers."""
        error = self(x.view(len(x), -1, self.config.d_model)).flatten(1) - y
        return float((error / self.output_scales).double().square().sum())

    def part(self, start: int, stop: int) -> "CrossLayerTranscoder":
        """Return the groups within latents [start, stop) of each layer, sharing these weights.

        As a transcoder's: the biases and the skip connection belong to the part that begins at 0.

        Raises:
            ValueError: ``start`` or ``stop`` is not 0 or a prefix.
        """
        sources = [source.part(start, stop) for source in self.sources]
        part = CrossLayerTranscoder(self.config.of_part(start, stop), sources).to(self.b_dec.device)
        if start == 0:
            part.b_dec.data = self.b_dec.data
            if self.config.skip:
                part.W_skip.data = self.W_skip.data
        return part.requires_grad_(False)

    def truncate(self, m: int) -> "CrossLayerTranscoder":
        """Return the valid smaller one made of the first ``m`` latents of each layer, with copies of the weights.

        Raises:
            ValueError: ``m`` is not a prefix.
        """
        small = self.part(0, m)
        small.load_state_dict({name: value.clone() for name, value in small.state_dict().items()}, assign=True)
        return small.requires_grad_(False)

    def share_of_later_layers(self) -> Float[Tensor, "layers d_hidden"]:
        """Return the share of each latent's squared decoder norm that goes to layers after its own."""
        d = self.config.d_model
        squares = [source.W_dec.detach().square() for source in self.sources]
        return torch.stack([1 - square[:, :d].sum(1) / square.sum(1).clamp(min=1e-30) for square in squares])

    def tensors(self, number: int) -> dict[str, Tensor]:
        """Return the weights of one layer under the names of its file, sharing memory with the model's."""
        d = self.config.d_model
        tensors = {name: value.detach() for name, value in self.sources[number].named_parameters()}
        tensors["W_dec"] = tensors["W_dec"].view(self.config.d_hidden, -1, d)
        tensors["b_dec"] = self.b_dec.detach()[number * d : (number + 1) * d]
        if self.config.skip:
            tensors["W_skip"] = self.W_skip.detach()[number]
        return tensors

    def _skipped(self, x: Tensor) -> Tensor | float:
        if not self.config.skip:
            return 0.0
        by_layer = torch.stack(self.inputs(x))
        return torch.bmm(by_layer, self.W_skip.transpose(1, 2)).transpose(0, 1).flatten(1)

    def _largest_of_tokens(self, inputs: list[Float[Tensor, "tokens d_model"]]) -> list[SparseLatents]:
        """Return the ``k · layers`` largest latents of each token over all layers.

        A few times k are taken of each layer, and more where a layer might have had still more among the largest.
        """
        wanted, k_here = self.config.k * len(self.sources), CANDIDATES * self.config.k
        while True:
            k_here = min(k_here, self.config.d_hidden)
            pairs = zip(self.sources, inputs, strict=True)
            found = [kernels.topk_encode(x, source.W_enc, source.b_enc, k_here) for source, x in pairs]
            values = torch.stack([latents.values.detach().view(-1, k_here) for latents in found], 1)
            chosen = torch.zeros_like(values.flatten(1), dtype=torch.bool)
            chosen.scatter_(1, values.flatten(1).topk(wanted).indices, True)
            chosen = chosen.view(values.shape)
            if k_here == self.config.d_hidden or not chosen.all(2).any():
                break
            k_here *= 2
        parts = zip(found, chosen.unbind(1), strict=True)
        return [kernels.select_entries(latents, mask.flatten()) for latents, mask in parts]
