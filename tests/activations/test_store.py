import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import make_store

from transcoders.activations import store
from transcoders.activations.store import Store
from transcoders.core.errors import UserError


@pytest.mark.parametrize("codec", [None, "zstd", "blosc-lz4"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_written_is_read_back(tmp_path, dtype, codec):
    x = torch.randn(5000, 8)
    path = make_store(tmp_path / "s.zarr", x, x * 2, dtype=dtype, codec=codec)
    opened = Store(path)
    expected = x.to(store.DTYPES[dtype])
    assert torch.equal(opened.rows("mlp_in", 0, 5000), expected)
    assert torch.equal(opened.rows("mlp_in", 4090, 4100), expected[4090:4100])
    assert opened.tokens == 5000
    assert opened.d_model == 8


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=3, max_size=3),
        min_size=1,
        max_size=5,
    )
)
def test_int8_is_off_by_half_a_step_of_its_row_at_most(rows):
    x = torch.tensor(rows)
    arrays = store.to_storage("mlp_in", x, "int8", "layer 3")
    assert {name: values.dtype.name for name, values in arrays.items()} == {
        "mlp_in": "int8",
        "mlp_in_scale": "float32",
    }
    restored, step = store.from_storage("mlp_in", arrays).double(), x.double().abs().amax(1, keepdim=True) / 127
    assert ((restored - x.double()).abs() <= step * (0.5 + 1e-4) + 1e-43).all()


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_int8_rows_are_read_as_float32_and_rows_of_zeros_survive(tmp_path, codec):
    x = torch.randn(5000, 8) * torch.logspace(-3, 4, 5000)[:, None]
    x[4000:4200] = 0
    opened = Store(make_store(tmp_path / "s.zarr", x, -x, dtype="int8", codec=codec))
    restored = opened.rows("mlp_in", 3900, 5000)
    assert restored.dtype == torch.float32
    assert (restored[100:300] == 0).all()
    assert ((restored - x[3900:]).norm(dim=1) <= 0.02 * x[3900:].norm(dim=1)).all()
    assert torch.equal(opened.rows("mlp_out", 3900, 5000), -restored)


def test_default_stores_have_no_trace_of_the_options(tmp_path):
    path = make_store(tmp_path / "s.zarr", torch.randn(10, 4), torch.randn(10, 4))
    assert not {"outputs", "codec"} & set(Store(path).attributes)
    assert sorted(p.name for p in path.iterdir()) == sorted((*store.ACTIVATIONS, *store.LABELS, "zarr.json"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(UserError, match="mlp_out of layer 3 holds NaN or infinity"):
        store.to_storage("mlp_out", torch.tensor([[1.0, bad]]), "float32", "layer 3")


def test_overflow_is_refused_and_names_the_dtype_to_use():
    with pytest.raises(UserError, match=r"collect\.dtype.*7e\+04, more than float16 holds.*bfloat16"):
        store.to_storage("mlp_out", torch.tensor([[70000.0]]), "float16", "layer 3")
    assert store.to_storage("mlp_out", torch.tensor([[70000.0]]), "bfloat16", "layer 3")["mlp_out"].dtype == np.uint16


def test_a_missing_store_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="no activation store; run `dvc repro collect`"):
        Store(tmp_path / "nothing.zarr")


def test_an_unfinished_store_is_refused(tmp_path):
    store.create(tmp_path / "s.zarr", 4, "float16", 100, {})
    with pytest.raises(UserError, match="unfinished"):
        Store(tmp_path / "s.zarr")


def test_a_foreign_zarr_group_is_refused(tmp_path):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w")
    group.create_array("temperature", shape=(3,), dtype="float32")
    with pytest.raises(UserError, match="not an activation store of schema 2"):
        Store(tmp_path / "s.zarr")


@pytest.mark.parametrize("damage", ["shorten", "delete"])
@pytest.mark.parametrize(
    ("array", "kind"),
    [("mlp_out", {}), ("token", {}), ("mlp_in_scale", {"dtype": "int8"}), ("mlp_in", {"codec": "zstd"})],
)
def test_a_truncated_store_is_refused(tmp_path, damage, array, kind):
    x = torch.randn(5000, 8)
    path = make_store(tmp_path / "s.zarr", x, x, **kind)
    file = next(p for p in (path / array / "c").rglob("*") if p.is_file())
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{array} is truncated .*remove it"):
        Store(path)


def test_a_file_that_is_no_zarr_is_refused(tmp_path):
    path = make_store(tmp_path / "s.zarr", torch.randn(10, 4), torch.randn(10, 4))
    (path / "zarr.json").write_text("{")
    with pytest.raises(UserError, match=r"s\.zarr"):
        Store(path)
