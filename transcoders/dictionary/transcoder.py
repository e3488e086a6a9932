"""The transcoder: MLP input -> a few active latents -> MLP output."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from transcoders import kernels
from transcoders.errors import UserError
from transcoders.files import replacing, write_json
from transcoders.kernels import Backend, SparseLatents
from transcoders.settings import Settings

WEIGHTS = "transcoder.safetensors"
CONFIG = "config.json"


class TranscoderConfig(Settings):
    """What, besides its weights, defines a transcoder."""

    encoder: Literal["topk"] = "topk"
    d_in: int = Field(gt=0)
    d_out: int = Field(gt=0)
    d_hidden: int = Field(gt=0)
    k: int = Field(gt=0)
    skip: bool = False
    input_scale: float = Field(default=1.0, gt=0)
    """The weights expect ``x / input_scale``: mean squared length d_in on the training tokens."""
    output_scale: float = Field(default=1.0, gt=0)
    """The weights produce ``y / output_scale``."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Layer, hook names, base model and its hash, split, seed, training parameters."""

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.d_hidden:
            raise ValueError(f"k = {self.k} is more than d_hidden = {self.d_hidden}")
        return self


class Output(NamedTuple):
    """A forward pass with what happened on the way. Batch dimensions are flattened to tokens."""

    y_hat: Float[Tensor, "tokens d_out"]
    latents: SparseLatents
    l0: Float[Tensor, "tokens"]
    """Active latents per token."""
    l1: Float[Tensor, "tokens"]
    """Sum of the latents per token, normalised units."""
    active: Int[Tensor, "active"]
    """Ids of the latents that fired on any token, ascending."""


class Transcoder(nn.Module):
    """TopK transcoder ``y_hat = z W_dec + b_dec [+ x W_skip^T]``, ``z = relu(TopK_k(x W_enc^T + b_enc))``.

    Weights are in normalised units (see ``TranscoderConfig``); calls take and give raw ones.
    TopK: arXiv 2406.04093, section 2.3; transcoders: arXiv 2406.11944; skip: arXiv 2501.18823.
    """

    def __init__(self, config: TranscoderConfig) -> None:
        """Allocate zero weights: W_enc [F, d_in], b_enc [F], W_dec [F, d_out], b_dec, [W_skip]."""
        super().__init__()
        self.config = config
        for name, shape in _shapes(config).items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter

    def encode_normalised(self, x: Float[Tensor, "tokens d_in"], backend: Backend = "auto") -> SparseLatents:
        """Latents of normalised inputs."""
        return kernels.topk_encode(x, self.W_enc, self.b_enc, self.config.k, backend=backend)

    def decode_normalised(
        self, latents: SparseLatents, x: Float[Tensor, "tokens d_in"], backend: Backend = "auto"
    ) -> Float[Tensor, "tokens d_out"]:
        """Normalised reconstruction; ``x`` (normalised) feeds the skip connection, if any."""
        y_hat = kernels.decode(latents, self.W_dec, backend=backend) + self.b_dec
        return y_hat + x @ self.W_skip.T if self.config.skip else y_hat

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> SparseLatents:
        """Latents of raw MLP inputs; batch dimensions are flattened to tokens."""
        return self.encode_normalised(x.reshape(-1, self.config.d_in) / self.config.input_scale)

    def decode(
        self, latents: SparseLatents, x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "tokens d_out"]:
        """Raw reconstruction [tokens, d_out]; a skip transcoder also needs ``x``.

        Raises:
            ValueError: ``x`` is missing although the transcoder has a skip connection.
        """
        if x is None and self.config.skip:
            raise ValueError("decode of a transcoder with skip: true needs x as well")
        flat = torch.empty(0) if x is None else x.reshape(-1, self.config.d_in) / self.config.input_scale
        return self.decode_normalised(latents, flat) * self.config.output_scale

    def forward_with_info(self, x: Float[Tensor, "*batch d_in"]) -> Output:
        """Reconstruction, latents, L0, L1 and the ids of the latents that fired."""
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
        """Predicted MLP output of raw MLP inputs, in the shape of ``x``."""
        return self.decode(self.encode(x), x).reshape(*x.shape[:-1], self.config.d_out)

    def save(self, folder: Path | str) -> None:
        """Write ``transcoder.safetensors`` and ``config.json`` into ``folder``."""
        folder = Path(folder)
        tensors = {name: value.detach().contiguous().cpu() for name, value in self.state_dict().items()}
        with replacing(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary)
        write_json(folder / CONFIG, self.config.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Self:
        """Load what ``save`` wrote.

        Raises:
            UserError: the folder or a file is missing or damaged, or shapes disagree.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise UserError(f"{folder}: holds no {name}; train the run, or correct the path")
        try:
            config = TranscoderConfig.model_validate(json.loads((folder / CONFIG).read_text()))
            tensors = load_file(folder / WEIGHTS, device=str(device))
        except (ValidationError, json.JSONDecodeError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: not a readable transcoder ({reason}); train it again") from None
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if found != _shapes(config):
            raise UserError(
                f"{folder}: {WEIGHTS} holds {found}, but {CONFIG} says {_shapes(config)}; "
                "the two files are not of one transcoder"
            )
        model = cls(config).to(device)
        model.load_state_dict(tensors)
        return model.requires_grad_(False)


def _shapes(config: TranscoderConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (config.d_hidden, config.d_in),
        "b_enc": (config.d_hidden,),
        "W_dec": (config.d_hidden, config.d_out),
        "b_dec": (config.d_out,),
    }
    if config.skip:
        shapes["W_skip"] = (config.d_out, config.d_in)
    return shapes
