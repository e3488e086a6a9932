"""What stops the features stage, and that it then leaves nothing behind."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from tests_support import make_store

from stages import features
from stages.common.paths import Run
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import WEIGHTS, Transcoder

ROOT = Path(__file__).parents[2]
RUN = Run("topk", 9, 0)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gemma: Path) -> Path:
    """A checkout with a tiny store, a run, and the real base model."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/model").symlink_to(gemma)
    x = torch.randn(600, 640)
    make_store(tmp_path / "data/activations/layer_9.zarr", x, x)
    pd.DataFrame({"title": ["A title"], "split": ["train"]}).to_parquet("data/split.parquet")
    pd.DataFrame({"title": ["A title"]}).to_parquet("data/documents.parquet")
    model = Transcoder(TranscoderConfig(d_in=640, d_out=640, d_hidden=32, k=2))
    with torch.no_grad():
        model.W_enc.normal_()
        model.W_dec.normal_()
    model.save(RUN.model)
    return tmp_path


def left_behind(root: Path) -> list[Path]:
    return [path for folder in ("data/features", "metrics") for path in (root / folder).rglob("*")]


def test_a_run_that_is_trained_anew_meanwhile_is_not_described(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = features.study

    def retrained_meanwhile(*arguments: object) -> object:
        result = study(*arguments)  # type: ignore[arg-type]
        with (RUN.model / WEIGHTS).open("ab") as file:
            file.write(b" ")
        return result

    monkeypatch.setattr(features, "study", retrained_meanwhile)
    with pytest.raises(UserError, match=rf"{RUN.model}/{WEIGHTS}: changed while its latents were studied.*run this"):
        features.work(RUN)
    assert left_behind(checkout) == []


def test_a_run_that_is_gone_is_named(checkout: Path) -> None:
    (RUN.model / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"{RUN.model}: holds no {WEIGHTS}.*train the run"):
        features.work(RUN)
    assert left_behind(checkout) == []


def test_without_a_held_out_document_there_are_descriptions_but_no_scores(checkout: Path) -> None:
    features.work(RUN)
    latents = pd.read_parquet(RUN.features / "latents.parquet")
    assert len(latents) == 32
    assert latents["score"].isna().all()
    assert (latents["promoted"].str.len() == 10).all()
    assert (RUN.features / "index.html").is_file()
