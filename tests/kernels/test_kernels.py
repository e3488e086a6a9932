"""Every backend against the reference: values, gradients, exact k, determinism, nesting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transcoders import kernels
from transcoders.kernels import Group, SparseLatents, auxiliary, columns
from transcoders.kernels.cpu import backend as cpu
from transcoders.kernels.cpu.linear import linear
from transcoders.kernels.cuda import backend as cuda

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["cpu", "triton"]
ENCODERS = ["topk", "batchtopk", "threshold", "relu", "groupmax"]


def device_of(backend: str) -> str:
    """Where a test of ``backend`` keeps its tensors: Triton's programs run on CUDA, or interpreted without it."""
    return DEVICE if backend == "triton" else "cpu"


class Weights:
    """A random encoder and decoder with leaves to differentiate, where ``backend`` computes."""

    def __init__(self, tokens: int, d: int, d_hidden: int, seed: int, dtype=torch.float32, backend: str = "cpu"):
        g = torch.Generator().manual_seed(seed)
        self.device = device_of(backend)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=dtype).to(self.device).requires_grad_()

        self.x, self.W_enc, self.b_enc = leaf(tokens, d), leaf(d_hidden, d), leaf(d_hidden)
        self.W_dec, self.y = leaf(d_hidden, d + 1), leaf(tokens, d + 1).detach()
        self.leaves = [self.x, self.W_enc, self.b_enc, self.W_dec]


def encode(name: str, w: Weights, k: int, backend: str) -> SparseLatents:
    args = (w.x, w.W_enc, w.b_enc)
    with kernels.using(backend):
        if name == "topk":
            return kernels.topk_encode(*args, k)
        if name == "batchtopk":
            return kernels.batchtopk_encode(*args, k)
        if name == "groupmax":
            return kernels.groupmax_encode(*args, 2)
        if name == "threshold":
            return kernels.threshold_encode(*args, w.b_enc.detach().abs() + 0.1)
        return kernels.threshold_encode(*args, 0.0)


def step(name: str, w: Weights, k: int, backend: str) -> list[Tensor]:
    """Latents, reconstruction and all gradients of a squared error."""
    latents = encode(name, w, k, backend)
    with kernels.using(backend):
        y_hat = kernels.decode(latents, w.W_dec)
    grads = torch.autograd.grad((y_hat - w.y).square().mean(), w.leaves)
    return [latents.dense(), y_hat, *grads]


shapes = st.tuples(
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 20).map(lambda n: 2 * n),
    st.integers(0, 10**6),
)


def assert_steps_match(name: str, w: Weights, k: int, backend: str) -> None:
    for ours, theirs in zip(step(name, w, k, backend), step(name, w, k, "reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
@given(shape=shapes, data=st.data())
@settings(max_examples=25, deadline=None)
def test_cpu_step_equals_reference(name: str, shape, data) -> None:
    assert_steps_match(name, Weights(*shape), data.draw(st.integers(1, shape[2])), "cpu")


@pytest.mark.parametrize("name", ENCODERS)
@given(shape=shapes, data=st.data())
@settings(max_examples=3, deadline=None)
def test_triton_step_equals_reference(name: str, shape, data) -> None:
    assert_steps_match(name, Weights(*shape, backend="triton"), data.draw(st.integers(1, shape[2])), "triton")


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("name", ENCODERS)
def test_no_tokens_have_no_latents(name: str, backend: str) -> None:
    w = Weights(tokens=0, d=6, d_hidden=40, seed=0, backend=backend)
    latents = encode(name, w, 4, backend)
    assert (latents.offsets.tolist(), len(latents.indices), len(latents.values)) == ([0], 0, 0)
    with kernels.using(backend):
        y_hat = kernels.decode(latents, w.W_dec)
    assert y_hat.shape == (0, 7)
    assert not any(grad.any() for grad in torch.autograd.grad(y_hat.sum(), [w.W_enc, w.W_dec]))


def test_step_equals_reference_at_a_realistic_shape() -> None:
    assert_steps_match("topk", Weights(tokens=1100, d=64, d_hidden=1000, seed=0), 32, "cpu")
    assert_steps_match("topk", Weights(tokens=5, d=30, d_hidden=300, seed=0, backend="triton"), 5, "triton")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device: Triton's interpreter would take an hour")
@pytest.mark.parametrize("name", ENCODERS)
def test_a_cuda_step_equals_reference_at_delivered_sizes(name: str) -> None:
    for tokens, d, d_hidden, k in ((2048, 640, 5120, 32), (3000, 2304, 16384, 64)):
        w = Weights(tokens, d, d_hidden, seed=20, backend="triton")
        for leaf in (w.W_enc, w.W_dec):
            leaf.data /= d**0.5  # of the size that training has, so that sums of thousands of terms stay near 1
        w.b_enc.data *= 0.1
        for ours, theirs in zip(step(name, w, k, "triton"), step(name, w, k, "reference"), strict=True):
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lower_id(backend: str) -> None:
    w = Weights(tokens=2, d=3, d_hidden=600, seed=7, backend=backend)
    with torch.no_grad():
        w.W_enc.zero_(), w.b_enc.fill_(1.0), w.b_enc[500].fill_(2.0)
    assert encode("topk", w, 3, backend).indices.tolist() == [0, 1, 500] * 2


@pytest.mark.parametrize("equal", [0, 100, 320, 2**17])
def test_selection_searches_the_row_where_too_many_values_reach_the_bound(equal: int) -> None:
    """What reaches the bound goes to a buffer of fixed size; equal values in few or in all blocks overflow it."""
    d_hidden, k, block = 2**17, 4, 2048
    w = Weights(tokens=2, d=3, d_hidden=d_hidden, seed=21, backend="triton")
    ids = torch.arange(d_hidden)
    strided = ids.view(-1, block).T.flatten()[:equal]  # the first latents of as few blocks as hold them
    with torch.no_grad():
        w.W_enc.zero_(), w.b_enc.copy_(-1 - ids / d_hidden), w.b_enc[strided].fill_(1.0), w.b_enc[5].fill_(2.0)
        w.b_enc[-2:].fill_(1.5)
    ours, expected = (encode("topk", w, k, backend) for backend in ("triton", "reference"))
    first_equal = min(set(strided.tolist()) - {5}, default=None)
    assert torch.equal(ours.dense(), expected.dense())
    if first_equal is not None:
        assert ours.indices.tolist() == sorted({5, first_equal, d_hidden - 2, d_hidden - 1}) * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_does_not_break_the_selection(backend: str) -> None:
    w = Weights(tokens=2, d=3, d_hidden=100, seed=8, backend=backend)
    with torch.no_grad():
        w.x[0] = torch.nan
    indices = encode("topk", w, 3, backend).indices
    assert len(indices) == 6
    assert ((indices >= 0) & (indices < 100)).all()


def test_a_bfloat16_x_gives_a_bfloat16_matmul_over_float32_weights() -> None:
    w = Weights(tokens=4, d=8, d_hidden=64, seed=9, backend="triton")
    w.x = w.x.detach().bfloat16()
    latents, expected = (encode("topk", w, 8, backend) for backend in ("triton", "reference"))
    torch.testing.assert_close(latents.dense(), expected.dense(), rtol=0.02, atol=0.02)
    assert latents.values.dtype == torch.float32


def test_triton_step_traces_as_one_graph() -> None:
    w = Weights(tokens=4, d=5, d_hidden=40, seed=10, backend="triton")

    def loss(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> Tensor:
        latents = kernels.topk_encode(x, W_enc, b_enc, (Group(0, 10, 2), Group(10, 40, 3)))
        errors, _ = kernels.squared_errors(latents, W_dec, w.y, (10, 40))
        return kernels.decode_nested(latents, W_dec, (10, 40)).square().sum() + errors.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    with kernels.using("triton"):
        losses = [compiled(*w.leaves), loss(*w.leaves)]
    ours, theirs = (torch.autograd.grad(one, w.leaves) for one in losses)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ENCODERS)
def test_gradcheck_of_reference_in_float64(name: str) -> None:
    w = Weights(tokens=3, d=4, d_hidden=8, seed=1, dtype=torch.float64)

    def loss(*leaves: Tensor) -> Tensor:
        w.x, w.W_enc, w.b_enc, w.W_dec = leaves
        latents = encode(name, w, 2, "reference")
        with kernels.using("reference"):
            return kernels.decode_nested(latents, w.W_dec, (3, 8))

    assert torch.autograd.gradcheck(loss, w.leaves)


@given(shape=shapes, data=st.data())
@settings(max_examples=20, deadline=None)
def test_exactly_k_per_token_and_per_batch(shape, data) -> None:
    k = data.draw(st.integers(1, shape[2]))
    backend = data.draw(st.sampled_from(["cpu", "cpu", "cpu", "triton"]))
    w = Weights(*shape, backend=backend)
    topk = encode("topk", w, k, backend)
    assert topk.offsets.diff().tolist() == [k] * shape[0]
    for row in topk.indices.view(-1, k):
        assert (row.diff() > 0).all(), "ids must ascend, without duplicates"
    assert len(encode("batchtopk", w, k, backend).values) == k * shape[0]


GROUPS = (Group(0, 6, 2), Group(6, 7, 1), Group(7, 40, 9))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("small_chunks", [False, True])
def test_each_group_chooses_its_own_largest(backend: str, small_chunks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small_chunks:
        monkeypatch.setattr(cpu, "CHUNK_BYTES", 0)
        monkeypatch.setattr(cuda, "_CHUNK_BYTES", 0)
        monkeypatch.setattr(cuda, "_LEAST_ROWS", 5)
    w = Weights(tokens=150 if backend == "cpu" else 7, d=5, d_hidden=40, seed=16, backend=backend)

    def outcome(backend: str) -> list[Tensor]:
        with kernels.using(backend):
            latents = kernels.topk_encode(w.x, w.W_enc, w.b_enc, GROUPS)
        grads = torch.autograd.grad((latents.dense() * w.y.sum(1, keepdim=True)).sum(), w.leaves[:3])
        return [latents.dense(), *grads]

    for ours, theirs in zip(outcome(backend), outcome("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with kernels.using(backend):
        alone = [kernels.topk_encode(w.x, w.W_enc[a:b], w.b_enc[a:b], k).dense() for a, b, k in GROUPS]
    torch.testing.assert_close(outcome(backend)[0], torch.cat(alone, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "groups", [[Group(0, 4, 2)], [Group(0, 4, 2), Group(5, 9, 2)], [Group(0, 4, 5), Group(4, 9, 1)]]
)
def test_groups_that_do_not_fit_are_told(groups: list[Group]) -> None:
    with pytest.raises(ValueError, match=r"do not divide 0..d_hidden = 9|k = 5 of the latents 0 to 4"):
        kernels.topk_encode(torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(9), groups)


@given(rows=st.integers(1, 5), latents=st.integers(1, 40), seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=40, deadline=None)
def test_all_but_the_largest_become_zero(rows: int, latents: int, seed: int, data) -> None:
    pre = torch.randn(rows, latents, generator=torch.Generator().manual_seed(seed))
    k = data.draw(st.integers(1, latents))
    best = pre.topk(k)
    expected = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
    for module in (cpu, cuda) if seed % 4 == 0 else (cpu,):
        largest = pre.clone().to(DEVICE if module is cuda else "cpu")
        module.keep_largest_(largest, k)
        assert torch.equal(largest.cpu(), expected)


def test_equal_values_are_kept_as_often_as_k_says() -> None:
    for module, dtype in ((cpu, torch.float32), (cpu, torch.bfloat16), (cuda, torch.float32)):
        ties = torch.ones(2, 50, dtype=dtype, device=DEVICE if module is cuda else "cpu")
        module.keep_largest_(ties, 7)
        assert ties.tolist() == [[1.0] * 7 + [0.0] * 43] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_is_the_product_with_its_bias(dtype: torch.dtype) -> None:
    w = Weights(tokens=9, d=7, d_hidden=33, seed=17, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(linear(w.x, w.W_enc, w.b_enc), w.x @ w.W_enc.T + w.b_enc)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ENCODERS)
def test_two_runs_are_bitwise_equal(backend: str, name: str) -> None:
    tokens, d_hidden = (600, 256) if backend == "cpu" else (6, 64)
    w = Weights(tokens, 16, d_hidden, seed=2, backend=backend)
    for first, second in zip(step(name, w, 8, backend), step(name, w, 8, backend), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["topk", "relu"])
@pytest.mark.parametrize("prefixes", [(40,), (1, 3, 40), (5, 20)])
def test_nested_equals_naive_sum(backend: str, name: str, prefixes: tuple[int, ...]) -> None:
    w = Weights(tokens=6, d=5, d_hidden=40, seed=3, backend=backend)

    def gradients(backend: str) -> list[Tensor]:
        latents = encode(name, w, 7, backend)
        with kernels.using(backend):
            nested = kernels.decode_nested(latents, w.W_dec, prefixes)
        weights = torch.arange(1.0, len(prefixes) + 1, device=w.device)
        loss = ((nested - w.y).square().mean((1, 2)) * weights).sum()
        return [nested, *torch.autograd.grad(loss, w.leaves)]

    for ours, theirs in zip(gradients(backend), gradients("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def naive_auxk(w: Weights, dead: Tensor, k_aux: int) -> list[Tensor]:
    pre = (w.x @ w.W_enc.T + w.b_enc)[:, dead]
    best = pre.topk(min(k_aux, len(dead))).indices
    z = torch.zeros_like(pre).scatter(1, best, pre.gather(1, best).relu())
    error = (w.y - z @ w.W_dec[dead]).square().sum()
    loss = error / (w.y - w.y.mean(0)).square().sum()
    return [loss, *torch.autograd.grad(loss, w.leaves)]


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("dense_share", [0.0, 2.0])
def test_auxk_equals_a_naive_one_and_touches_dead_rows_only(
    backend: str, dense_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = Weights(tokens=10, d=6, d_hidden=30, seed=4, backend=backend)
    dead = torch.tensor([2, 5, 6, 11, 29], device=w.device)

    def gradients(backend: str, k_aux: int) -> list[Tensor]:
        with kernels.using(backend):
            loss = kernels.auxk(w.x, w.y, w.W_enc, w.b_enc, w.W_dec, dead, k_aux)
        return [loss, *(grad.to_dense() for grad in torch.autograd.grad(loss, w.leaves))]

    monkeypatch.setattr(auxiliary, "_DENSE_SHARE", dense_share)
    for k_aux in (2, 5, 9):
        ours = gradients(backend, k_aux)
        for a, b in zip(ours, naive_auxk(w, dead, k_aux), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        alive = torch.ones(30, dtype=torch.bool, device=w.device).index_fill(0, dead, False)
        assert not any(grad[alive].any() for grad in ours[2:])
    none = torch.tensor([], dtype=torch.int64, device=w.device)
    with kernels.using(backend):
        assert kernels.auxk(w.x, w.y, w.W_enc, w.b_enc, w.W_dec, none, 4) == 0


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_auxk_in_bfloat16_is_near_that_in_float32(backend: str) -> None:
    w = Weights(tokens=40, d=16, d_hidden=64, seed=18, backend=backend)
    dead = torch.arange(3, 40, 2, device=w.device)

    def gradients(x: Tensor) -> list[Tensor]:
        with kernels.using(backend):
            loss = kernels.auxk(x, w.y, w.W_enc, w.b_enc, w.W_dec, dead, 9)
        return [loss, *(grad.to_dense() for grad in torch.autograd.grad(loss, w.leaves[1:]))]

    for narrow, wide in zip(gradients(w.x.detach().bfloat16()), gradients(w.x.detach()), strict=True):
        assert narrow.dtype == torch.float32
        assert (narrow - wide).norm() < 0.02 * wide.norm()


def test_triton_multiplies_in_the_dtype_of_autocast() -> None:
    w = Weights(tokens=6, d=16, d_hidden=64, seed=19, backend="triton")

    def gradients(x: Tensor, enabled: bool) -> list[Tensor]:
        with torch.autocast(w.device, torch.bfloat16, enabled=enabled), kernels.using("triton"):
            latents = kernels.topk_encode(x, w.W_enc, w.b_enc, 8)
            errors, _ = kernels.squared_errors(latents, w.W_dec, w.y)
        return [latents.values, *torch.autograd.grad(errors.sum(), w.leaves[1:])]

    narrow = gradients(w.x.detach().bfloat16(), enabled=False)
    for ours, theirs in zip(gradients(w.x.detach(), enabled=True), narrow, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_x_gets_a_gradient_only_when_it_asks() -> None:
    w = Weights(tokens=4, d=3, d_hidden=9, seed=5)
    w.x = w.x.detach()
    kernels.topk_encode(w.x, w.W_enc, w.b_enc, 2).values.sum().backward()
    assert w.x.grad is None
    assert w.W_enc.grad is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 10}, r"k = 10 is not within 1..d_hidden = 9"),
        ({"k": 0}, r"k = 0"),
        ({"b_enc": torch.zeros(8)}, r"b_enc is \[8\]: expected \[9\]"),
        ({"x": torch.zeros(4, 5)}, r"x is \[4, 5\] and W_enc is \[9, 3\]"),
        ({"x": torch.zeros(4, 3, device="meta")}, r"different devices"),
    ],
)
def test_errors_name_what_is_wrong(change: dict, message: str) -> None:
    args = {"x": torch.zeros(4, 3), "W_enc": torch.zeros(9, 3), "b_enc": torch.zeros(9), "k": 2}
    with pytest.raises(ValueError, match=message):
        kernels.topk_encode(**(args | change))


def test_an_unknown_backend_is_named_and_the_choice_ends_with_the_block() -> None:
    with pytest.raises(ValueError, match="backend = 'gpu'"), kernels.using("gpu"):
        pass
    with kernels.using("reference"):
        assert kernels._module(torch.zeros(1)) is kernels.reference
    assert kernels._module(torch.zeros(1)) is cpu


def test_decoder_errors_name_what_is_wrong() -> None:
    latents = kernels.topk_encode(torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(9), 2)
    with pytest.raises(ValueError, match="transpose it"):
        kernels.decode(latents, torch.zeros(3, 9))
    with pytest.raises(ValueError, match="strictly rising"):
        kernels.decode_nested(latents, torch.zeros(9, 3), (3, 3))


def test_jumprelu_gradients_follow_the_paper() -> None:
    w = Weights(tokens=40, d=6, d_hidden=50, seed=12)
    theta, bandwidth = (w.b_enc.detach().abs() + 0.3).requires_grad_(), 0.5
    latents, l0 = kernels.jumprelu_encode(w.x, w.W_enc, w.b_enc, theta, bandwidth)
    p = (w.x @ w.W_enc.T + w.b_enc).relu().detach()
    torch.testing.assert_close(latents.dense(), p * (p > theta))
    torch.testing.assert_close(l0, (p > theta).sum(1).float())

    weight = torch.randn(40, 50)
    rectangle = ((p - theta).abs() < bandwidth / 2).float().detach() / bandwidth
    [grad] = torch.autograd.grad((latents.dense() * weight).sum(), theta, retain_graph=True)
    torch.testing.assert_close(grad, (-theta * rectangle * weight).sum(0), rtol=1e-4, atol=1e-4)
    [grad] = torch.autograd.grad(l0.sum(), theta)
    torch.testing.assert_close(grad, -rectangle.sum(0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_transpose_is_shared_by_both_gradients_and_forgotten(backend: str) -> None:
    w = Weights(tokens=4, d=3, d_hidden=9, seed=13, backend=backend)
    known = set(columns._columns_of)  # what tests before this one still hold
    latents = encode("topk", w, 2, backend)
    with kernels.using(backend):
        kernels.decode_nested(latents, w.W_dec, (4, 9)).sum().backward()
    assert set(columns._columns_of) - known == {latents.indices}
    del latents
    assert set(columns._columns_of) <= known


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prefixes", [(), (4, 40), (3, 9, 30)])
def test_squared_errors_are_those_of_the_reconstructions(backend: str, prefixes: tuple[int, ...]) -> None:
    w = Weights(tokens=6, d=5, d_hidden=40, seed=14, backend=backend)
    w.y.requires_grad_()

    def gradients(backend: str) -> list[Tensor]:
        latents = encode("topk", w, 7, backend)
        with kernels.using(backend):
            errors, residual = kernels.squared_errors(latents, w.W_dec, w.y, prefixes)
        loss = (errors * torch.arange(1.0, len(errors) + 1, device=w.device)).sum()
        return [errors, residual, *torch.autograd.grad(loss, [*w.leaves, w.y])]

    ours = gradients(backend)
    for a, b in zip(ours, gradients("reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_auxk_gradients_add_to_the_main_ones_as_dense() -> None:
    w = Weights(tokens=10, d=6, d_hidden=30, seed=15)
    dead = torch.tensor([2, 5])

    def gradient(share: float) -> Tensor:
        errors, residual = kernels.squared_errors(encode("topk", w, 4, "cpu"), w.W_dec, w.y)
        aux = kernels.auxk(w.x, residual, w.W_enc, w.b_enc, w.W_dec, dead, 2)
        w.W_dec.grad = None
        (errors.sum() + share * aux).backward()
        assert w.W_dec.grad is not None
        assert w.W_dec.grad.layout == torch.strided
        return w.W_dec.grad

    difference = gradient(1.0) - gradient(0.0)
    assert difference[dead].any()
    difference[dead] = 0
    assert difference.abs().max() < 1e-6


def test_groups_side_by_side_are_their_dense_matrices_side_by_side():
    g = torch.Generator().manual_seed(0)
    pre = [torch.randn(7, width, generator=g, dtype=torch.float64).requires_grad_() for width in (5, 1, 12)]
    parts = []
    for matrix, least in zip(pre, (0.0, 9.0, -0.5), strict=True):  # ragged, empty, nearly full
        rows, columns = (matrix > least).nonzero().unbind(1)
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), rows.bincount(minlength=7).cumsum(0)])
        parts.append(SparseLatents(offsets, columns, matrix[rows, columns], matrix.shape[1]))
    together = kernels.concatenate(parts)
    expected = torch.cat([matrix * (matrix > least) for matrix, least in zip(pre, (0.0, 9.0, -0.5), strict=True)], 1)
    assert torch.equal(together.dense(), expected)
    assert all(together.indices[a:b].diff().gt(0).all() for a, b in together.offsets.unfold(0, 2, 1).tolist())
    weights = torch.randn(7, 18, generator=g, dtype=torch.float64)
    theirs = torch.autograd.grad((expected * weights).sum(), pre)
    ours = torch.autograd.grad((together.dense() * weights).sum(), pre)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
