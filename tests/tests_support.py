"""Small real inputs for tests: stores with known content."""

from pathlib import Path

import numpy as np
import zarr
from torch import Tensor

from transcoders.activations import store


def make_store(
    path: Path, x: Tensor, y: Tensor, *, dtype: str = "float32", documents: np.ndarray | None = None,
    codec: str | None = None, outputs: str = "stored",
) -> Path:  # fmt: skip
    """A complete store of the rows of ``x`` and ``y``; token ids are the row numbers."""
    rows, d_model = x.shape
    store.create(path, d_model, dtype, rows, {}, codec=codec, outputs=outputs)
    group = zarr.open_group(path, mode="r+")
    arrays = store.to_storage("mlp_in", x, dtype, "a test")
    if outputs == "stored":
        arrays |= store.to_storage("mlp_out", y, dtype, "a test")
    for name, values in arrays.items():
        group[name][:] = values
    group["token"][:] = np.arange(rows)
    group["document"][:] = np.zeros(rows) if documents is None else documents
    group["position"][:] = np.arange(rows)
    group["context"][:] = np.zeros(rows)
    attributes = {
        "d_model": d_model, "layer": 0, "model": "m", "model_hash": "h" * 64, "hook_in": "i", "hook_out": "o",
        "hf_hook_in": "hi", "hf_hook_out": "ho", "gain_applied": True,
        "mlp_out_mean": y.mean(0).tolist(), "mlp_out_mean_square": float(y.square().sum(1).mean()),
    }  # fmt: skip
    store.finish(path, rows, attributes)
    return path
