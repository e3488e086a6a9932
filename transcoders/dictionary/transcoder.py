"""The transcoder: MLP input -> a few active latents -> MLP output."""

import json
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from transcoders import kernels
from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.files import replacing, sha256_of, write_json
from transcoders.core.places import place, writing
from transcoders.core.settings import Settings
from transcoders.distributed.ranks import Team
from transcoders.kernels import Backend, Group, SparseLatents

WEIGHTS = "transcoder.safetensors"
CONFIG = "config.json"
CHECKSUM = "weights_sha256"


Encoder = Literal["topk", "groupmax", "batchtopk", "jumprelu", "relu"]
FIXED_K = ("topk", "groupmax")
"""Encoders that choose k latents on every token, whatever they are worth."""
THRESHOLDED = ("batchtopk", "jumprelu")
"""Encoders with a threshold per latent, learned or (batchtopk) measured in training."""

PER_LATENT = ("W_enc", "b_enc", "W_dec", "threshold")
"""Weights with a row for each latent."""


class TranscoderConfig(Settings):
    """What, besides its weights, defines a transcoder."""

    encoder: Encoder = "topk"
    d_in: int = Field(gt=0)
    d_out: int = Field(gt=0)
    d_hidden: int = Field(gt=0)
    k: int = Field(gt=0)
    """Active latents per token: exactly with topk, on average with the others."""
    prefixes: tuple[int, ...] = Field(default=(), strict=False)
    """Sizes of the valid smaller transcoders in a nested one, ascending, d_hidden last."""
    prefix_k: tuple[int, ...] = Field(default=(), strict=False)
    """Active latents within each prefix: each group of latents chooses its own share of k."""
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
        if self.prefixes and (self.prefixes[-1] != self.d_hidden or not _ascends(self.prefixes)):
            raise ValueError(f"prefixes {self.prefixes} do not ascend to d_hidden = {self.d_hidden}")
        if len(self.prefix_k) != len(self.prefixes) or (self.prefix_k and self.prefix_k[-1] != self.k):
            raise ValueError(f"prefix_k {self.prefix_k} must give k of every prefix, {self.k} for the last")
        for group in self.groups:
            if not 0 < group.k <= group.stop - group.start:
                raise ValueError(
                    f"latents {group.start} to {group.stop} would have k = {group.k}: "
                    "prefix_k must rise at every prefix, by no more than the latents it adds"
                )
        return self

    @property
    def groups(self) -> tuple[Group, ...]:
        """The latents that each prefix adds, or all as one group."""
        if not self.prefixes:
            return (Group(0, self.d_hidden, self.k),)
        sizes, ks = (0, *self.prefixes), (0, *self.prefix_k)
        return tuple(Group(a, b, j - i) for (a, b), (i, j) in zip(pairwise(sizes), pairwise(ks), strict=True))


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
    """Transcoder ``y_hat = z W_dec + b_dec [+ x W_skip^T]``, ``z = encoder(x W_enc^T + b_enc)``.

    Weights are in normalised units (see ``TranscoderConfig``); calls take and give raw ones.
    Transcoders: arXiv 2406.11944; topk: 2406.04093, section 2.3; batchtopk: 2412.06410; jumprelu:
    2407.14435; nested: 2503.17547; skip: 2501.18823.
    """

    def __init__(self, config: TranscoderConfig) -> None:
        """Allocate zero weights: W_enc [F, d_in], b_enc [F], W_dec [F, d_out], b_dec, [W_skip, threshold [F]]."""
        super().__init__()
        self.config = self.whole = config
        for name, shape in _shapes(config).items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    team = Team()
    """The ranks that hold a slice of the latents each; here this one holds all."""
    whole: TranscoderConfig
    """Of all ranks' latents together."""
    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter
    threshold: nn.Parameter

    def encode_normalised(self, x: Float[Tensor, "tokens d_in"], backend: Backend = "auto") -> SparseLatents:
        """Latents of normalised inputs, a token's not depending on the other tokens."""
        if self.config.encoder in FIXED_K:
            return self.chosen(x, backend)
        least = _wide(self.threshold) if self.config.encoder in THRESHOLDED else 0.0
        return kernels.threshold_encode(x, _wide(self.W_enc), _wide(self.b_enc), least, backend)

    def chosen(
        self,
        x: Float[Tensor, "tokens d_in"],
        backend: Backend = "auto",
        watched: Int[Tensor, "watched"] | None = None,
    ) -> SparseLatents:
        """Latents of encoders that choose k of each group; topk's with the pre-activations of ``watched`` latents."""
        if self.config.encoder == "topk":
            return self.largest(x, backend, watched)
        choose = {"groupmax": kernels.groupmax_encode, "batchtopk": kernels.batchtopk_encode}[self.config.encoder]
        return kernels.concatenate([choose(x, W, b, k, backend) for W, b, k in self.encoders()])

    def encoders(self) -> list[tuple[Float[Tensor, "group d_in"], Float[Tensor, "group"], int]]:
        """Each group's rows of W_enc and b_enc, and its k."""
        groups = self.config.groups
        sizes = [group.stop - group.start for group in groups]
        ks = [group.k for group in groups]
        return list(zip(map(_wide, self.W_enc.split(sizes)), map(_wide, self.b_enc.split(sizes)), ks, strict=True))

    def largest(self, x: Tensor, backend: Backend = "auto", watched: Tensor | None = None) -> SparseLatents:
        """The k largest latents of each group on each token, whatever the encoder."""
        return kernels.topk_encode(x, _wide(self.W_enc), _wide(self.b_enc), self.config.groups, backend, watched)

    def part(self, start: int, stop: int) -> "Transcoder":
        """The groups within latents [start, stop) as a transcoder that shares these weights.

        It has the biases and the skip connection if it begins at 0, else it has zeros there: the
        parts of a transcoder add up to it.

        Raises:
            ValueError: ``start`` or ``stop`` is not 0 or a prefix.
        """
        part = self._empty(start, stop)
        for name, value in part.named_parameters():
            own = getattr(self, name)
            if name in PER_LATENT:
                value.data = own.data[start:stop]
            elif start == 0:
                value.data = own.data
            else:
                value.data = torch.zeros_like(own.data)
        return part.requires_grad_(False)

    def _empty(self, start: int, stop: int) -> "Transcoder":
        return Transcoder(config_of_part(self.config, start, stop))

    def own(self, rows: Tensor) -> Tensor:
        """Of a row for each latent of the whole, this rank's."""
        return rows

    def truncate(self, m: int) -> "Transcoder":
        """The valid smaller transcoder made of the first ``m`` latents, ``m`` being one of ``config.prefixes``.

        It holds copies of the weights.

        Raises:
            ValueError: ``m`` is not a prefix.
        """
        small = self.part(0, m)
        small.load_state_dict({name: value.clone() for name, value in small.state_dict().items()}, assign=True)
        return small.requires_grad_(False)

    def decode_normalised(
        self, latents: SparseLatents, x: Float[Tensor, "tokens d_in"], backend: Backend = "auto"
    ) -> Float[Tensor, "tokens d_out"]:
        """Normalised reconstruction; ``x`` (normalised) feeds the skip connection, if any."""
        y_hat = self.decode_latents(latents, backend) + self.b_dec
        return y_hat + x @ _wide(self.W_skip).T if self.config.skip else y_hat

    def decode_latents(self, latents: SparseLatents, backend: Backend = "auto") -> Float[Tensor, "tokens d_out"]:
        """``z W_dec``, without the biases."""
        return kernels.decode(latents, _wide(self.W_dec), backend=backend)

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
        """Write ``transcoder.safetensors`` and ``config.json`` into ``folder``, a local one or any that fsspec knows.

        Raises:
            UserError: the URL cannot be written to.
        """
        tensors = {name: value.detach().contiguous().cpu() for name, value in self.state_dict().items()}
        with writing(place(folder), last=CONFIG) as local:
            with replacing(local / WEIGHTS) as temporary:
                save_file(tensors, temporary)
            write_config(local, self.config)

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Self:
        """Load what ``save`` wrote, or a foreign transcoder: a folder or URL, or ``org/repo:folder`` on the Hub.

        What is not here is downloaded into the user's cache. Foreign ones (``transcoders.formats``) keep the
        dtype of their file, and their units are raw.

        Raises:
            UserError: the folder or a file is missing or damaged, or shapes disagree.
        """
        reference, folder = str(folder), Path(folder)
        if not (folder / WEIGHTS).is_file() and (folder.exists() or ":" in reference):
            # By name, so that the stages that read only what this project wrote do not depend on it.
            return cast(Self, import_module("transcoders.formats.read").read(reference, device))
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
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if found != _shapes(config):
            raise UserError(
                f"{folder}: {WEIGHTS} holds {found}, but {CONFIG} says {_shapes(config)}; "
                "the two files are not of one transcoder"
            )
        if checksum not in (None, sha256_of(folder / WEIGHTS)):
            raise UserError(f"{folder}: {WEIGHTS} is damaged (its {CHECKSUM} is not that in {CONFIG}); train it again")
        model = cls(config).to(device)
        model.load_state_dict(tensors)
        return model.requires_grad_(False)


def write_config(folder: Path, config: TranscoderConfig) -> None:
    """``config.json`` beside the weights that lie in ``folder``, with their hash: a flipped bit is told on loading."""
    write_json(folder / CONFIG, {**config.model_dump(mode="json"), CHECKSUM: sha256_of(folder / WEIGHTS)})


def _wide(weight: Tensor) -> Tensor:
    """A foreign file's 16-bit weights are computed with in float32; a copy for the moment."""
    return weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight


def config_of_part(config: TranscoderConfig, start: int, stop: int) -> TranscoderConfig:
    """Of the groups within latents [start, stop)."""
    borders = (0, *(config.prefixes or (config.d_hidden,)))
    if start not in borders or stop not in borders or start >= stop:
        raise ValueError(f"latents {start} to {stop}: a transcoder divides only at its prefixes {borders[1:]}")
    groups = [group for group in config.groups if start <= group.start and group.stop <= stop]
    ks = np.cumsum([group.k for group in groups]).tolist()
    return config.model_copy(update={
        "d_hidden": stop - start, "k": ks[-1], "skip": config.skip and start == 0,
        "prefixes": tuple(group.stop - start for group in groups) if config.prefixes else (),
        "prefix_k": tuple(ks) if config.prefixes else (),
    })  # fmt: skip


def _shapes(config: TranscoderConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (config.d_hidden, config.d_in),
        "b_enc": (config.d_hidden,),
        "W_dec": (config.d_hidden, config.d_out),
        "b_dec": (config.d_out,),
    }
    if config.skip:
        shapes["W_skip"] = (config.d_out, config.d_in)
    if config.encoder in THRESHOLDED:
        shapes["threshold"] = (config.d_hidden,)
    return shapes


def _ascends(sizes: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise((0, *sizes)))
