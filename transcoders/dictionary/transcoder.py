"""The transcoder: MLP input -> a few active latents -> MLP output."""

import json
from pathlib import Path
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from transcoders import kernels
from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.files import sha256_of, write_json
from transcoders.core.places import place, writing
from transcoders.core.tensors import save_tensors
from transcoders.dictionary.config import PER_LATENT, TranscoderConfig
from transcoders.dictionary.encoders import ENCODERS, Encoder, Selection
from transcoders.dictionary.sources import OneSource
from transcoders.kernels import SparseLatents

WEIGHTS = "transcoder.safetensors"
CONFIG = "config.json"
CHECKSUM = "weights_sha256"


class Output(NamedTuple):
    """Hold a forward pass with what happened on the way; batch dimensions are flattened to tokens."""

    y_hat: Float[Tensor, "tokens d_out"]
    latents: SparseLatents
    l0: Float[Tensor, "tokens"]
    """Active latents per token."""
    l1: Float[Tensor, "tokens"]
    """Sum of the latents per token, normalised units."""
    active: Int[Tensor, "active"]
    """Ids of the latents that fired on any token, ascending."""


class Transcoder(OneSource, nn.Module):
    """Compute ``y_hat = z W_dec + b_dec [+ x W_skip^T]``, ``z = encoder(x W_enc^T + b_enc)``.

    Weights are in normalised units (see ``TranscoderConfig``); calls take and give raw ones.
    Transcoders: arXiv 2406.11944; topk: 2406.04093, section 2.3; batchtopk: 2412.06410; jumprelu:
    2407.14435; nested: 2503.17547; skip: 2501.18823.
    """

    def __init__(self, config: TranscoderConfig) -> None:
        """Allocate zero weights: W_enc [F, d_in], b_enc [F], W_dec [F, d_out], b_dec, [W_skip, threshold [F]]."""
        super().__init__()
        self.config = config
        for name, shape in _shapes(config).items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    config: TranscoderConfig
    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter
    threshold: nn.Parameter

    @property
    def encoder(self) -> Encoder:
        """Return the encoder, which chooses latents."""
        return ENCODERS[self.config.encoder]

    def select(self, x: Float[Tensor, "tokens d_in"], bandwidth: float) -> list[Selection]:
        """Return each source's latents of a training batch."""
        return [self.encoder.select(self, x, bandwidth)]

    def encode_normalised(self, x: Float[Tensor, "tokens d_in"]) -> SparseLatents:
        """Return the latents of normalised inputs, a token's not depending on the other tokens."""
        return self.encoder.encode(self, x)

    def largest(self, x: Float[Tensor, "tokens d_in"]) -> SparseLatents:
        """Return the k largest latents of each group on each token."""
        return kernels.topk_encode(x, _wide(self.W_enc), _wide(self.b_enc), self.config.groups)

    def winners(self, x: Float[Tensor, "tokens d_in"]) -> SparseLatents:
        """Return, of each group's k sets of neighbouring latents, the winners on each token."""
        return kernels.concatenate([kernels.groupmax_encode(x, W, b, k) for W, b, k in self.group_weights()])

    def above(self, x: Float[Tensor, "tokens d_in"], threshold: Tensor | float) -> SparseLatents:
        """Return the latents above ``threshold``, one number or one for each latent."""
        threshold = _wide(threshold) if isinstance(threshold, Tensor) else threshold
        return kernels.threshold_encode(x, _wide(self.W_enc), _wide(self.b_enc), threshold)

    def group_weights(self) -> list[tuple[Float[Tensor, "group d_in"], Float[Tensor, "group"], int]]:
        """Return each group's rows of W_enc and b_enc, and its k."""
        groups = self.config.groups
        sizes = [group.stop - group.start for group in groups]
        ks = [group.k for group in groups]
        return list(zip(map(_wide, self.W_enc.split(sizes)), map(_wide, self.b_enc.split(sizes)), ks, strict=True))

    def part(self, start: int, stop: int) -> "Transcoder":
        """Return the groups within latents [start, stop) as a transcoder that shares these weights.

        It has the biases and the skip connection if it begins at 0, else it has zeros there: the
        parts of a transcoder add up to it.

        Raises:
            ValueError: ``start`` or ``stop`` is not 0 or a prefix.
        """
        part = self._empty(start, stop)
        for name, value in part.named_parameters():
            weights = getattr(self, name)
            if name in PER_LATENT:
                value.data = weights.data[start:stop]
            elif start == 0:
                value.data = weights.data
            else:
                value.data = torch.zeros_like(weights.data)
        return part.requires_grad_(False)

    def _empty(self, start: int, stop: int) -> "Transcoder":
        return Transcoder(self.config.of_part(start, stop))

    def truncate(self, m: int) -> "Transcoder":
        """Return the valid smaller transcoder made of the first ``m`` latents, ``m`` being one of ``config.prefixes``.

        It holds copies of the weights.

        Raises:
            ValueError: ``m`` is not a prefix.
        """
        small = self.part(0, m)
        small.load_state_dict({name: value.clone() for name, value in small.state_dict().items()}, assign=True)
        return small.requires_grad_(False)

    def decode_normalised(
        self, latents: SparseLatents, x: Float[Tensor, "tokens d_in"]
    ) -> Float[Tensor, "tokens d_out"]:
        """Return the normalised reconstruction; ``x`` (normalised) feeds the skip connection, if any."""
        y_hat = self.decode_latents(latents) + self.b_dec
        return y_hat + x @ _wide(self.W_skip).T if self.config.skip else y_hat

    def decode_latents(self, latents: SparseLatents) -> Float[Tensor, "tokens d_out"]:
        """Return ``z W_dec``, without the biases."""
        return kernels.decode(latents, _wide(self.W_dec))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> SparseLatents:
        """Return the latents of raw MLP inputs; batch dimensions are flattened to tokens."""
        return self.encode_normalised(x.reshape(-1, self.config.d_in) / self.config.input_scale)

    def decode(
        self, latents: SparseLatents, x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "tokens d_out"]:
        """Return the raw reconstruction [tokens, d_out]; a skip transcoder also needs ``x``.

        Raises:
            ValueError: ``x`` is missing although the transcoder has a skip connection.
        """
        if x is None and self.config.skip:
            raise ValueError("decode of a transcoder with skip: true needs x as well")
        flat = torch.empty(0) if x is None else x.reshape(-1, self.config.d_in) / self.config.input_scale
        return self.decode_normalised(latents, flat) * self.config.output_scale

    def forward_with_info(self, x: Float[Tensor, "*batch d_in"]) -> Output:
        """Return the reconstruction, latents, L0, L1 and the ids of the latents that fired."""
        latents = self.encode(x)
        fired = latents.values > 0
        per_token = torch.zeros(latents.tokens, device=x.device)
        rows = latents.rows()
        return Output(
            y_hat=self.decode(latents, x),
            latents=latents,
            l0=per_token.index_add(0, rows, fired.float()),
            l1=per_token.index_add(0, rows, latents.values.float()),
            active=latents.indices[fired].unique().long(),
        )

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Return the predicted MLP output of raw MLP inputs, in the shape of ``x``."""
        return self.decode(self.encode(x), x).reshape(*x.shape[:-1], self.config.d_out)

    def save(self, folder: Path | str) -> None:
        """Write ``transcoder.safetensors`` and ``config.json`` into ``folder``, a local one or any that fsspec knows.

        Raises:
            UserError: the URL cannot be written to.
        """
        with writing(place(folder), last=CONFIG) as local:
            save_tensors(local / WEIGHTS, self.state_dict())
            write_config(local, self.config)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Self:
        """Load what ``save`` wrote into a local folder. (``transcoders.load`` reads anybody's, and URLs.)

        Raises:
            UserError: the folder or a file is missing or damaged, or shapes disagree.
        """
        folder = Path(folder)
        if not (folder / WEIGHTS).is_file() and (across := sorted(folder.glob("layer_*.safetensors"))):
            raise UserError(
                f"{folder}: holds a cross-layer transcoder ({across[0].name}, …), where one of a single layer is needed"
            )
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise UserError(f"{folder}: holds no {name}; train the run, or correct the path")
        try:
            content = json.loads((folder / CONFIG).read_text())
            checksum = content.pop(CHECKSUM, None)
            config = TranscoderConfig.model_validate(content)
            tensors = load_file(folder / WEIGHTS, device=str(device))
        except (*DAMAGE, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: not a readable transcoder ({reason}); train it again") from None
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if shapes != _shapes(config):
            raise UserError(
                f"{folder}: {WEIGHTS} holds {shapes}, but {CONFIG} says {_shapes(config)}; "
                "the two files are not of one transcoder"
            )
        if checksum not in (None, sha256_of(folder / WEIGHTS)):
            raise UserError(f"{folder}: {WEIGHTS} is damaged (its {CHECKSUM} is not that in {CONFIG}); train it again")
        model = cls(config).to(device)
        model.load_state_dict(tensors)
        return model.requires_grad_(False)


def weights_hash(folder: Path) -> str:
    """Return the hash of the weights of the transcoder in ``folder``.

    Raises:
        UserError: it has none.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder}: holds no {WEIGHTS} (any more); train the run, then run this stage again")
    return sha256_of(file)


def write_config(folder: Path, config: TranscoderConfig) -> None:
    """Write ``config.json`` beside the weights in ``folder``, with their hash: loading then notices a flipped bit."""
    write_json(folder / CONFIG, {**config.model_dump(mode="json"), CHECKSUM: sha256_of(folder / WEIGHTS)})


def _wide(weight: Tensor) -> Tensor:
    """Return a foreign file's 16-bit weights in float32, a copy for the moment; others as they are."""
    return weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight


def _shapes(config: TranscoderConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (config.d_hidden, config.d_in),
        "b_enc": (config.d_hidden,),
        "W_dec": (config.d_hidden, config.d_out),
        "b_dec": (config.d_out,),
    }
    if config.skip:
        shapes["W_skip"] = (config.d_out, config.d_in)
    if ENCODERS[config.encoder].has_threshold:
        shapes["threshold"] = (config.d_hidden,)
    return shapes
