"""Files that lost their end or have a wrong bit: told in one line with the remedy, or read as they were."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkout import Undisturbed

from stages.preset import AllParams
from transcoders import load
from transcoders.absorption.words import Probes, Task, load_task, save_task
from transcoders.activations import store
from transcoders.activations.store import Store
from transcoders.core.errors import UserError
from transcoders.core.files import read_json
from transcoders.core.tables import read_csv, read_parquet
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.training.checkpoint import CheckpointFile
from transcoders.training.sharing import HERE

RUN, LAYER = "models/plt-1-0", "data/activations/layer_1.zarr"
REMEDIES = ("dvc repro", "train it again", "not of one transcoder", "correct the path")
Read = Callable[[Path], Any]


def read_store(path: Path) -> Any:
    opened = Store(path)
    return [opened.rows(name, 0, opened.tokens) for name in store.ACTIVATIONS] + [
        opened.labels(name) for name in store.LABELS
    ]


def damaged(file: Path, count: int, seed: int) -> Any:
    """Write ``count`` versions of ``file``, each cut or with a bit changed; yield what was done to it."""
    rng, whole = np.random.default_rng(seed), file.read_bytes()
    for number in range(count):
        place = int(rng.integers(len(whole)))
        if number % 3 == 0:
            file.write_bytes(whole[:place])
            yield f"{file.name} cut at {place}"
        else:
            bit = 1 << int(rng.integers(8))
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            yield f"{file.name}: bit {bit} of byte {place}"
    file.write_bytes(whole)


def told(read: Callable[[], Any], names: str) -> Any:
    """What was read; None where it was refused in a line that names the file and what to do."""
    try:
        return read()
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert names in said
    assert any(remedy in said for remedy in REMEDIES), said
    return None


@pytest.mark.parametrize("name", ["data/split.parquet", "data/documents.parquet", "data/contexts.parquet"])
def test_a_damaged_table_is_refused_or_reads_as_it_was(few: Undisturbed, tmp_path: Path, name: str) -> None:
    file = Path(shutil.copy(few.checkout.root / name, tmp_path))
    columns = {"split": ["title", "split"], "documents": ["title", "tokens"], "contexts": ["document", "tokens"]}

    def read() -> Any:
        table = read_parquet(file, "split", columns[file.stem])
        return [list(map(str, table[column])) for column in table]

    expected, refused = read(), 0
    for what in damaged(file, 150, 0):
        found = told(read, file.name)
        refused += found is None
        assert found is None or found == expected, what
    assert refused > 75


def test_a_damaged_checkpoint_is_not_continued(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    tensors = {"a": torch.randn(50, 8), "b": torch.arange(9), "c": torch.tensor(1.5)}
    part = SimpleNamespace(state_dict=lambda: {**tensors, "step": 3})
    model = Transcoder(TranscoderConfig(d_in=1, d_out=1, d_hidden=1, k=1))
    checkpoint = CheckpointFile(file, HERE)
    checkpoint.save({"part": part}, {"part": model})
    for what in damaged(file, 200, 1):
        found = checkpoint.read()
        if found is not None:
            assert found.values == {"part": {"step": 3}}, what
            assert all(torch.equal(found.tensors[f"part.{name}"], value) for name, value in tensors.items()), what


def test_a_damaged_transcoder_is_refused_or_has_its_own_weights(few: Undisturbed, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(few.checkout.root / RUN, tmp_path / "run"))
    expected = load(folder).state_dict()
    for name, seed in (("transcoder.safetensors", 2), ("config.json", 3)):
        for what in damaged(folder / name, 100, seed):
            found = told(lambda: load(folder), "run")
            if found is not None:
                assert name == "config.json", what
                assert all(torch.equal(expected[n], value) for n, value in found.state_dict().items()), what


def test_a_damaged_store_is_refused_or_reads_as_it_was(few: Undisturbed, tmp_path: Path) -> None:
    path = Path(shutil.copytree(few.checkout.root / LAYER, tmp_path / "s.zarr"))
    expected = read_store(path)
    files = [path / "zarr.json", path / "mlp_in/zarr.json", path / "token/zarr.json"]
    files += [next(p for p in (path / name / "c").rglob("*") if p.is_file()) for name in ("mlp_out", "document")]
    for seed, file in enumerate(files):
        for what in damaged(file, 60, seed):
            found = told(lambda: read_store(path), "s.zarr")
            assert found is None or all(map(np.array_equal, found, expected)), what
    chunk = next(p for p in (path / "mlp_in/c").rglob("*") if p.is_file())
    whole = chunk.read_bytes()
    chunk.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(UserError, match=r"s\.zarr: mlp_in is damaged .*remove it and run `dvc repro collect`"):
        read_store(path)


def test_damaged_words_are_refused_or_have_their_own_sizes(tmp_path: Path) -> None:
    file = tmp_path / "words.safetensors"
    categories, test = np.array(["a", "c"]), torch.tensor([True, False])
    task = Task(["ab", "cd"], categories, torch.randn(2, 4), torch.randn(2, 4), test)
    probes = Probes(["a"], torch.randn(1, 4), torch.ones(1, 2, dtype=torch.bool), torch.ones(1))
    save_task(file, task, probes)
    for what in damaged(file, 150, 5):
        found = told(lambda: load_task(file), file.name)
        assert found is None or found[0].x.shape == task.x.shape, what


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("models/plt-1-0/metrics.json", lambda file: read_json(file, "run `dvc repro train`")),
        ("models/plt-1-0/history.csv", lambda file: read_csv(file, "train")),
        ("params.yaml", AllParams.read),
    ],
)
def test_damaged_text_files_raise_nothing_else(few: Undisturbed, tmp_path: Path, name: str, read: Read) -> None:
    file = Path(shutil.copy(few.checkout.root / name, tmp_path))
    said = []
    for _ in damaged(file, 60, 6):
        try:
            read(file)
        except UserError as error:
            said.append(str(error))
    assert all(file.name in line and "\n" not in line for line in said)
    assert said or name.endswith(".csv"), "a table of numbers without its end is a table of numbers"
