"""Stage classes, on a small store whose tokens are words of a small table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from tests_support import make_store
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from stages import classes, train
from stages.common.paths import Run, classes_of
from transcoders.activations import store

ROOT = Path(__file__).parents[2]
TABLE = {"colour": ["red", "blue", "green", "pink"], "animal": ["dog", "cat", "cow", "hen"], "rare": ["gnu"] * 4}
TOKENS = 6000


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A layer whose x tells the word and whose y tells the class, and two transcoders trained on it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = [*TABLE["colour"], *TABLE["animal"], *(f"other{c}" for c in "abcdefghijklmnopqrstuvwxyz"[:24])]
    vocabulary = {f"▁{text}": number for number, text in enumerate(texts)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="▁red")))
    tokenizer.save_pretrained("data/model")
    tokens = np.random.default_rng(0).integers(len(texts), size=TOKENS)
    generator = torch.Generator().manual_seed(0)
    x, of_class = torch.randn(len(texts), 16, generator=generator), torch.randn(3, 16, generator=generator)
    y = of_class[torch.arange(len(texts)).clamp(max=8) // 4]
    noise = 0.1 * torch.randn(TOKENS, 16, generator=generator)
    make_store(
        Path("data/activations/layer_2.zarr"), x[tokens] + noise, y[tokens] + noise, documents=np.arange(TOKENS) // 200
    )
    store.opened(Path("data/activations/layer_2.zarr"))["token"][:] = tokens
    parts = ["train"] * 24 + ["validation"] * 3 + ["test"] * 3
    pd.DataFrame({"title": range(30), "split": parts}).to_parquet("data/split.parquet")
    params = YAML().load(ROOT / "params.yaml")
    params["train"] |= {"d_hidden": 64, "k": 8, "epochs": 4, "batch_size": 200, "precision": "float32"}
    params["runs"] = {"variants": ["topk", "matryoshka"], "layers": [2], "seeds": [0]}
    params["classes"] |= {"members": 4, "halves": 4, "bootstrap": 50}
    params["probing"] |= {"folds": 2, "bootstrap": 50}
    YAML().dump(params, tmp_path / "params.yaml")
    for variant in ("topk", "matryoshka"):
        train.work(Run(variant, 2, 0))
    monkeypatch.setattr(classes, "read_table", lambda: TABLE)
    return params


def test_classes_of_the_text_are_measured_for_every_dictionary_and_judged(checkout):
    classes.work(2)
    table = pd.read_csv(classes_of(2) / "classes.csv")
    names = ["untrained", "topk-2-0", "matryoshka-2-0"]
    assert table[["name", "class"]].to_numpy().tolist() == [[n, c] for n in names for c in ("colour", "animal")]
    assert table["words"].tolist() == [4] * 6
    assert (table["auroc"] > 0.9).all()
    rows = pd.read_csv(classes_of(2) / "hypotheses.csv")
    assert rows[["hypothesis", "variant", "against", "verdict"]].to_numpy().tolist() == [
        ["H1", "matryoshka", "topk", "undecided"],
        ["H2", "matryoshka", "topk", "undecided"],
    ]
    probing = pd.read_csv(classes_of(2) / "probing.csv")
    read = [["frequency", 1], ["y", 16], *([name, k] for name in names for k in (1, 2, 5))]
    assert probing[["name", "k"]].to_numpy().tolist() == read
    assert set(probing["items"]) == {8}
    assert probing.loc[1, "auc"] == 1
    assert probing["difference"].notna().tolist() == [False] * 8 + [True] * 3
    first = {path.name: path.read_bytes() for path in classes_of(2).iterdir()}
    classes.work(2)
    assert {path.name: path.read_bytes() for path in classes_of(2).iterdir()} == first


@pytest.mark.parametrize("changes", [{"tokens": 0}, {"members": 5}, {"occurrences": 2000}], ids=str)
def test_tables_have_no_rows_where_classes_are_left_out_or_the_text_has_none(checkout, changes, caplog):
    checkout["classes"] |= changes
    YAML().dump(checkout, Path("params.yaml"))
    with caplog.at_level("INFO"):
        classes.work(2)
    assert all(pd.read_csv(classes_of(2) / name).empty for name in ("classes.csv", "probing.csv", "hypotheses.csv"))
    if "tokens" not in changes:
        needs = f"{checkout['classes']['members']} words that occur {checkout['classes']['occurrences']} times"
        assert f"classes: 0 of 3 have {needs} in {TOKENS} tokens" in caplog.text
