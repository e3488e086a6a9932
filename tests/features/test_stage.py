"""What stops the features stage, and that it then leaves nothing behind."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from tests_support import make_store

from stages import features
from stages.runs import Run
from transcoders.core.errors import UserError
from transcoders.dictionary.transcoder import WEIGHTS, Transcoder, TranscoderConfig

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
    model.save(RUN.folder)
    return tmp_path


def left_behind(root: Path) -> list[Path]:
    return [path for folder in ("data/features", "data/scores", "metrics") for path in (root / folder).rglob("*")]


def test_a_run_that_is_trained_anew_meanwhile_is_not_described(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = features.find

    def retrained_meanwhile(*arguments: object) -> object:
        found = find(*arguments)  # type: ignore[arg-type]
        with (RUN.folder / WEIGHTS).open("ab") as file:
            file.write(b" ")
        return found

    monkeypatch.setattr(features, "find", retrained_meanwhile)
    with pytest.raises(UserError, match=rf"{RUN.folder}/{WEIGHTS}: changed while its latents were studied.*run this"):
        features.run(RUN)
    assert left_behind(checkout) == []


def test_a_run_that_is_gone_is_named(checkout: Path) -> None:
    (RUN.folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"{RUN.folder}: holds no {WEIGHTS}.*train the run"):
        features.run(RUN)
    assert left_behind(checkout) == []


def test_without_a_held_out_document_there_are_descriptions_but_no_scores(checkout: Path) -> None:
    features.run(RUN)
    latents = pd.read_parquet(f"data/features/{RUN.name}.parquet")
    assert len(latents) == 32
    assert latents["score"].isna().all()
    assert (latents["promoted"].str.len() == 10).all()
    assert Path(f"data/features/{RUN.name}/index.html").is_file()
