"""What tests share: the real base model, fetched once a machine."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, by torch's import

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reached the Hub would pass here and fail elsewhere
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # the same kernels, run by numpy; read once, at their import

from transcoders.base_model import fetch_model
from transcoders.files import cache_folder
from transcoders.settings import ModelSettings

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def gemma() -> Path:
    """Gemma 3 270M as a Hugging Face folder: converted once, kept in the user's cache."""
    folder = cache_folder("tests") / "gemma-3-270m"
    if not (folder / "provenance.json").is_file():
        fetch_model(ModelSettings(name="gemma-3-270m"), folder)
    return folder
