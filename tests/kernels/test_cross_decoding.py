"""Cross-layer decoding against a few lines of einsum: values, gradients, prefixes, bad arguments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transcoders import kernels
from transcoders.kernels.cpu import crosslayer as cpu
from transcoders.kernels.crosslayer import decode_sources, squared_errors_of_sources
from transcoders.kernels.latents import Source, SparseLatents

Problem = tuple[list[tuple[SparseLatents, Tensor]], list[Tensor], Tensor, int]


def problem(
    layers: int, tokens: int, d: int, d_hidden: int, k: int, seed: int, *, dtype=torch.float32, reach: int = 99
) -> Problem:
    """Latents with leaves for values, decoders [d_hidden, later layers * d], a target, and d."""
    g = torch.Generator().manual_seed(seed)
    latents, decoders = [], []
    for layer in range(layers):
        x, W = (torch.randn(n, 5, generator=g, dtype=dtype) for n in (tokens, d_hidden))
        made = kernels.topk_encode(x, W, torch.zeros(d_hidden, dtype=dtype), k)
        leaf = made.values.clone().requires_grad_()
        latents.append((made._replace(values=leaf), leaf))
        width = min(layers - layer, reach + 1) * d
        decoders.append(torch.randn(d_hidden, width, generator=g, dtype=dtype).requires_grad_())
    target = torch.randn(tokens, layers * d, generator=g, dtype=dtype).requires_grad_()
    return latents, decoders, target, d


def sources(p: Problem) -> list[Source]:
    latents, decoders, _, d = p
    return [Source(z, W, n * d) for n, ((z, _), W) in enumerate(zip(latents, decoders, strict=True))]


def by_einsum(p: Problem, prefixes: tuple[int, ...]) -> Tensor:
    """y^l = sum over s <= l and latents i of z^s_i W^{s -> l}_i, densely, of each prefix: the definition."""
    latents, decoders, target, d = p
    layers = len(decoders)
    of_prefixes = []
    for m in prefixes:
        y = torch.zeros(len(target), layers, d, dtype=target.dtype)
        for s, ((z, _), W) in enumerate(zip(latents, decoders, strict=True)):
            blocks = W.view(len(W), -1, d)
            y[:, s : s + blocks.shape[1]] += torch.einsum("ti,ild->tld", z.dense()[:, :m], blocks[:m])
        of_prefixes.append(y.flatten(1))
    return torch.stack(of_prefixes)


def gradients(loss: Tensor, p: Problem) -> list[Tensor]:
    latents, decoders, target, _ = p
    return list(torch.autograd.grad(loss, [*(leaf for _, leaf in latents), *decoders, target]))


shapes = st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 9), st.integers(4, 12), st.integers(1, 4))


@pytest.mark.parametrize("reach", [0, 1, 99])
@given(shape=shapes, seed=st.integers(0, 10**6), nested=st.booleans())
@settings(max_examples=25, deadline=None)
def test_errors_and_gradients_equal_einsum(reach: int, shape, seed: int, nested: bool) -> None:
    p = problem(*shape, seed, dtype=torch.float64, reach=reach)
    prefixes = (2, shape[3]) if nested else (shape[3],)
    weights = torch.tensor([0.3, 1.7], dtype=torch.float64)[-len(prefixes) :]
    ours = squared_errors_of_sources(sources(p), p[2], prefixes)
    residuals = p[2] - by_einsum(p, prefixes)
    theirs = residuals.square().mean((1, 2))
    torch.testing.assert_close(ours.errors, theirs)
    torch.testing.assert_close(ours.residual, residuals[-1].detach())
    for a, b in zip(gradients((ours.errors * weights).sum(), p), gradients((theirs * weights).sum(), p), strict=True):
        torch.testing.assert_close(a, b)


def test_float32_is_within_1e_5_at_eighteen_layers() -> None:
    p = problem(18, 24, 64, 128, 16, 0)
    ours = squared_errors_of_sources(sources(p), p[2])
    residual = p[2] - by_einsum(p, (128,))[0]
    assert (ours.residual - residual).norm() <= 1e-5 * residual.norm()
    theirs = gradients(residual.square().mean(), p)
    for a, b in zip(gradients(ours.errors[0], p), theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("block", [1, 1 << 30])
def test_the_size_of_blocks_changes_rounding_alone(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem(3, 6, 100, 9, 3, 1)
    expected = gradients(squared_errors_of_sources(sources(p), p[2]).errors[0], p)
    monkeypatch.setattr(cpu, "BLOCK_BYTES", block)
    for a, b in zip(gradients(squared_errors_of_sources(sources(p), p[2]).errors[0], p), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_single_complete_source_is_a_transcoder_to_the_bit() -> None:
    p = problem(1, 8, 6, 10, 3, 2)
    ours = squared_errors_of_sources(sources(p), p[2], (4, 10))
    theirs = kernels.squared_errors(p[0][0][0], p[1][0], p[2], (4, 10))
    assert torch.equal(ours.errors, theirs.errors)


@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"])
def test_every_backend_decodes_the_same(backend: str) -> None:
    device = "cuda" if torch.cuda.is_available() and backend == "triton" else "cpu"
    p = problem(3, 5, 8, 6, 2, 3)
    moved = [
        Source(z._replace(offsets=z.offsets.to(device), indices=z.indices.to(device), values=v), W, first)
        for (z, W, first), v in zip(sources(p), (leaf.to(device) for _, leaf in p[0]), strict=True)
    ]
    moved = [source._replace(W_dec=source.W_dec.to(device)) for source in moved]
    target = p[2].to(device)
    with kernels.using(backend):
        decoded = decode_sources(moved, target.shape[1])
        errors = squared_errors_of_sources(moved, target, (2, 6))
    expected = by_einsum(p, (2, 6))
    torch.testing.assert_close(decoded.cpu(), expected[1])
    torch.testing.assert_close(errors.errors.cpu(), (p[2] - expected).square().mean((1, 2)))


def test_the_same_bytes_whatever_the_threads() -> None:
    p = problem(4, 40, 96, 30, 8, 4)
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(gradients(squared_errors_of_sources(sources(p), p[2]).errors[0], p))
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    p = problem(2, 4, 3, 5, 2, 5)
    good = sources(p)
    with pytest.raises(ValueError, match="no sources"):
        decode_sources([], 6)
    with pytest.raises(ValueError, match=r"columns 3 to 9 are not within 0\.\.6"):
        decode_sources([good[0]._replace(first=3), good[1]], 6)
    fewer = good[1]._replace(latents=kernels.topk_encode(torch.ones(3, 2), torch.ones(5, 2), torch.zeros(5), 1))
    with pytest.raises(ValueError, match="different numbers of tokens"):
        decode_sources([good[0], fewer], 6)
    with pytest.raises(ValueError, match="target has 3 tokens"):
        squared_errors_of_sources(good, p[2][:3])
