import numpy as np
import pytest
import torch
import zarr
from tests_support import make_store

from transcoders.activations import store
from transcoders.activations.store import Store
from transcoders.errors import UserError


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_written_is_read_back(tmp_path, dtype):
    x = torch.randn(5000, 8)
    path = make_store(tmp_path / "s.zarr", x, x * 2, dtype=dtype)
    opened = Store(path)
    expected = x.to(store.DTYPES[dtype])
    assert torch.equal(opened.rows("mlp_in", 0, 5000), expected)
    assert torch.equal(opened.rows("mlp_in", 4090, 4100), expected[4090:4100])
    assert opened.tokens == 5000
    assert opened.d_model == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(bad):
    with pytest.raises(UserError, match="mlp_out of layer 3 holds NaN or infinity"):
        store.to_storage(torch.tensor([[1.0, bad]]), "float32", "mlp_out of layer 3")


def test_overflow_is_refused_and_names_the_dtype_to_use():
    with pytest.raises(UserError, match=r"collect\.dtype.*7e\+04, more than float16 holds.*bfloat16"):
        store.to_storage(torch.tensor([[70000.0]]), "float16", "mlp_out")
    assert store.to_storage(torch.tensor([[70000.0]]), "bfloat16", "mlp_out").dtype == np.uint16


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
    with pytest.raises(UserError, match="not an activation store of schema 1"):
        Store(tmp_path / "s.zarr")


@pytest.mark.parametrize("damage", ["shorten", "delete"])
@pytest.mark.parametrize("array", ["mlp_out", "token"])
def test_a_truncated_store_is_refused(tmp_path, damage, array):
    x = torch.randn(5000, 8)
    path = make_store(tmp_path / "s.zarr", x, x)
    file = next(p for p in (path / array / "c").rglob("*") if p.is_file())
    if damage == "delete":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{array} is truncated at shard 0.*remove it"):
        Store(path)


def test_a_file_that_is_no_zarr_is_refused(tmp_path):
    path = make_store(tmp_path / "s.zarr", torch.randn(10, 4), torch.randn(10, 4))
    (path / "zarr.json").write_text("{")
    with pytest.raises(UserError, match=r"s\.zarr"):
        Store(path)
