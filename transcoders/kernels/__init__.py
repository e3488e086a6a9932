"""The sparse step: encode, select, decode, and gradients that stay sparse.

The tensors' device decides which of the backends, that compute the same thing, does the work:

- `cpu`: sparse gradients on CPU tensors;
- `triton`: fused kernels on CUDA tensors (or on any tensor under `TRITON_INTERPRET=1`, for tests);
- `reference`: a few obvious lines of dense torch, any device, any dtype, differentiated by autograd, for tests
  (`with kernels.using("reference")`).

Weights are float32; the encoder matmul runs in the dtype of `x` (bfloat16 for tensor cores), except
on CPU, where a narrow `x` is widened; AuxK's matmuls run in it on CPU too.
Latents and reconstructions have the weights' dtype.
Gradients are deterministic bit for bit on every backend but the reference on CUDA.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

from jaxtyping import Float, Int
from torch import Tensor

from transcoders.kernels import auxiliary, jumprelu, reference
from transcoders.kernels.auxiliary import variance_of
from transcoders.kernels.cpu import backend as cpu
from transcoders.kernels.jumprelu import JumpReLU
from transcoders.kernels.latents import (
    Group,
    SparseLatents,
    SquaredErrors,
    between,
    check_decoder,
    check_encoder,
    check_groups,
    check_prefixes,
    concatenate,
    select_entries,
)

_MODULES: dict[str, ModuleType] = {"reference": reference, "cpu": cpu}
if find_spec("triton"):
    from transcoders.kernels.cuda import backend as cuda

    _MODULES["triton"] = cuda
_forced = "auto"

__all__ = [
    "Group",
    "JumpReLU",
    "SparseLatents",
    "SquaredErrors",
    "auxk",
    "backend_of",
    "batchtopk_encode",
    "between",
    "concatenate",
    "decode",
    "decode_nested",
    "groupmax_encode",
    "jumprelu_encode",
    "select_entries",
    "squared_errors",
    "threshold_encode",
    "topk_encode",
    "using",
]


def topk_encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_hidden d_in"],
    b_enc: Float[Tensor, "d_hidden"],
    k: int | Sequence[Group],
) -> SparseLatents:
    """Return `relu(TopK_k(x W_encᵀ + b_enc))`: exactly `k` entries per token, or `k` of each group.

    Differentiable in W_enc, b_enc and, where it requires a gradient, x.
    """
    check_encoder(x, W_enc, b_enc, k if isinstance(k, int) else None)
    groups = (Group(0, len(W_enc), k),) if isinstance(k, int) else tuple(k)
    check_groups(groups, len(W_enc))
    latents: SparseLatents = _module(x).topk_encode(x, W_enc, b_enc, groups)
    return latents


def batchtopk_encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_hidden d_in"],
    b_enc: Float[Tensor, "d_hidden"],
    k: int,
) -> SparseLatents:
    """Return the `k · tokens` largest pre-activations of the batch, after relu (arXiv 2412.06410)."""
    check_encoder(x, W_enc, b_enc, k)
    latents: SparseLatents = _module(x).batchtopk_encode(x, W_enc, b_enc, k)
    return latents


def threshold_encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_hidden d_in"],
    b_enc: Float[Tensor, "d_hidden"],
    threshold: float | Float[Tensor, ""] | Float[Tensor, "d_hidden"],
) -> SparseLatents:
    """Return `p · 1[p > threshold]` with `p = relu(x W_encᵀ + b_enc)`; a threshold of 0 is a plain relu.

    No gradient reaches the threshold.
    """
    check_encoder(x, W_enc, b_enc)
    if isinstance(threshold, Tensor) and threshold.shape not in ((), (len(W_enc),)):
        raise ValueError(f"threshold is {list(threshold.shape)}: expected a number or [{len(W_enc)}]")
    latents: SparseLatents = _module(x).threshold_encode(x, W_enc, b_enc, threshold)
    return latents


def jumprelu_encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_hidden d_in"],
    b_enc: Float[Tensor, "d_hidden"],
    threshold: Float[Tensor, "d_hidden"],
    bandwidth: float,
) -> JumpReLU:
    """Return `p · 1[p > θ]` and its L0, with rectangle straight-through gradients to θ (2407.14435, eq. 11).

    Entries within half a bandwidth below θ are stored, with value 0, for they too move θ.
    """
    check_encoder(x, W_enc, b_enc)
    if bandwidth <= 0:
        raise ValueError(f"bandwidth = {bandwidth}: expected a positive number, such as 0.001")
    least = threshold.detach() - bandwidth / 2
    return jumprelu.jump(threshold_encode(x, W_enc, b_enc, least), threshold, bandwidth)


def groupmax_encode(
    x: Float[Tensor, "tokens d_in"],
    W_enc: Float[Tensor, "d_hidden d_in"],
    b_enc: Float[Tensor, "d_hidden"],
    k: int,
) -> SparseLatents:
    """Return the largest of each of k groups of neighbouring latents, after relu: a cheaper choice than TopK."""
    check_encoder(x, W_enc, b_enc, k)
    if len(W_enc) % k:
        raise ValueError(f"k = {k} groups do not divide d_hidden = {len(W_enc)}: change either")
    latents: SparseLatents = _module(x).groupmax_encode(x, W_enc, b_enc, k)
    return latents


def decode(latents: SparseLatents, W_dec: Float[Tensor, "d_hidden d_out"]) -> Float[Tensor, "tokens d_out"]:
    """Return `z W_dec`, without a bias; differentiable in the latents' values and in W_dec."""
    return decode_nested(latents, W_dec, (latents.d_hidden,))[0]


def decode_nested(
    latents: SparseLatents,
    W_dec: Float[Tensor, "d_hidden d_out"],
    prefixes: tuple[int, ...],
) -> Float[Tensor, "prefixes tokens d_out"]:
    """Return `z[:, :m] W_dec[:m]` for every prefix `m`, for about the price of one decode.

    Each latent is decoded into its own group only; a running sum over groups gives the prefixes.
    """
    check_decoder(latents, W_dec)
    check_prefixes(prefixes, latents.d_hidden)
    y_hat: Tensor = _module(W_dec).decode_nested(latents, W_dec, prefixes)
    return y_hat


def squared_errors(
    latents: SparseLatents,
    W_dec: Float[Tensor, "d_hidden d_out"],
    target: Float[Tensor, "tokens d_out"],
    prefixes: tuple[int, ...] = (),
) -> SquaredErrors:
    """Return the mean squared error of each prefix's reconstruction of `target` (no prefixes: of all latents).

    It is `(target − decode_nested(…)).square().mean((1, 2))`, on CPU without its passes over
    `[prefixes, tokens, d_out]`. Subtract biases and a skip connection from the target: it is
    differentiable too.
    """
    check_decoder(latents, W_dec)
    prefixes = prefixes or (latents.d_hidden,)
    check_prefixes(prefixes, latents.d_hidden)
    if target.shape != (latents.tokens, W_dec.shape[1]):
        raise ValueError(
            f"target is {list(target.shape)}: expected {[latents.tokens, W_dec.shape[1]]}, "
            "tokens of the latents by columns of W_dec"
        )
    errors: SquaredErrors = _module(W_dec).squared_errors(latents, W_dec, target, prefixes)
    return errors


def auxk(
    x: Float[Tensor, "tokens d_in"],
    residual: Float[Tensor, "tokens d_out"],
    W_enc: Float[Tensor, "d_hidden d_in"],
    b_enc: Float[Tensor, "d_hidden"],
    W_dec: Float[Tensor, "d_hidden d_out"],
    dead_indices: Int[Tensor, "dead"],
    k_aux: int,
    variance: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Return how badly the top `k_aux` dead latents reconstruct the residual (1 is no help at all).

    The residual `y − ŷ` is a target: no gradient reaches it. The squared error is divided by the
    residual's variance (arXiv 2406.04093, A.2), or by `variance`, where `residual` is a part of a
    batch. Costs are proportional to the number of dead latents. With none the loss is 0. The
    gradients that the weights receive from it are sparse (dead rows only): autograd adds them
    to the dense ones of the main loss.
    """
    module = _module(x)
    variance = variance_of(residual.detach()) if variance is None else variance
    if module is reference:
        return reference.auxk(x, residual, W_enc, b_enc, W_dec, dead_indices, k_aux, variance)
    return auxiliary.auxk(x, residual, W_enc, b_enc, W_dec, dead_indices, k_aux, variance, module)


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Let all calls within use ``backend``: reference, cpu or triton; auto goes by the tensors' device again.

    For tests and benchmarks. What runs backward is what ran forward.

    Raises:
        ValueError: there is no such backend here.
    """
    global _forced
    if backend != "auto" and backend not in _MODULES:
        known = ", ".join(["auto", *_MODULES])
        raise ValueError(f"backend = {backend!r}: expected one of {known} (triton needs the package triton)")
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


def backend_of(tensor: Tensor) -> str:
    """Return the name of the backend that works on ``tensor``.

    Raises:
        ValueError: there is none for its device.
    """
    backend = _forced if _forced != "auto" else "triton" if tensor.is_cuda else "cpu"
    if backend == "triton" and backend not in _MODULES:
        raise ValueError("CUDA tensors need the package triton: install it")
    if backend == "cpu" and tensor.device.type != "cpu":
        raise ValueError(f"the kernels for CPU got tensors on {tensor.device}")
    return backend


def _module(tensor: Tensor) -> ModuleType:
    return _MODULES[backend_of(tensor)]
