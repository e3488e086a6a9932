"""Decoding the latents of several layers into the outputs of their own and later layers, which add up.

The outputs of all layers lie side by side in a token's row. A source is one layer's latents; their decoder rows are
those of all layers that they write to, joined, so that one sparse pass reads each latent once.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from transcoders import kernels
from transcoders.kernels.cpu import crosslayer as cpu
from transcoders.kernels.latents import Source, SquaredErrors, check_decoder, check_prefixes


def decode_sources(sources: Sequence[Source], width: int) -> Float[Tensor, "tokens width"]:
    """Return the sum over ``sources`` of `z W_dec`, each in its columns of ``width``; differentiable as `decode` is."""
    return decode_nested_sources(sources, width, (sources[0].latents.d_hidden,) if sources else ())[0]


def decode_nested_sources(
    sources: Sequence[Source], width: int, prefixes: tuple[int, ...]
) -> Float[Tensor, "prefixes tokens width"]:
    """Return the sum over ``sources`` of `z[:, :m] W_dec[:m]` for every prefix `m` of each source's latents.

    Each backend's own kernel decodes one source after the other into all columns that it writes to.
    """
    _check(sources, width)
    total: Tensor | None = None
    for latents, W_dec, first in sources:
        part = kernels.decode_nested(latents, W_dec, prefixes)
        placed = pad(part, (first, width - first - W_dec.shape[1]))
        total = placed if total is None else total + placed
    assert total is not None, "_check has seen a source"
    return total


def squared_errors_of_sources(
    sources: Sequence[Source], target: Float[Tensor, "tokens width"], prefixes: tuple[int, ...] = ()
) -> SquaredErrors:
    """Return the mean squared error of what each prefix of every source's latents, all together, make of ``target``.

    As `squared_errors`, which it is for a single source that writes to all columns; ``prefixes`` count the latents of
    each source.
    """
    _check(sources, target.shape[1])
    d_hidden = sources[0].latents.d_hidden
    prefixes = prefixes or (d_hidden,)
    if len(sources) == 1 and sources[0].columns == slice(0, target.shape[1]):
        return kernels.squared_errors(sources[0].latents, sources[0].W_dec, target, prefixes)
    check_prefixes(prefixes, d_hidden)
    if target.shape[0] != sources[0].latents.tokens:
        raise ValueError(f"target has {target.shape[0]} tokens, the latents have {sources[0].latents.tokens}")
    if kernels.backend_of(target) == "cpu":
        return cpu.squared_errors(sources, target, prefixes)
    residuals = target - decode_nested_sources(sources, target.shape[1], prefixes)
    return SquaredErrors(residuals.square().mean((1, 2)), residuals[-1].detach())


def _check(sources: Sequence[Source], width: int) -> None:
    """Raise ValueError when sources do not fit together."""
    if not sources:
        raise ValueError("no sources: nothing is decoded")
    for latents, W_dec, first in sources:
        check_decoder(latents, W_dec)
        if not 0 <= first <= width - W_dec.shape[1]:
            raise ValueError(f"columns {first} to {first + W_dec.shape[1]} are not within 0..{width}")
    sizes = {(latents.tokens, latents.d_hidden) for latents, _, _ in sources}
    if len(sizes) > 1:
        raise ValueError(f"sources have different numbers of tokens and latents: {sorted(sizes)}")
