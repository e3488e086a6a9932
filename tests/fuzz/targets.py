"""Every reader of files that others wrote, as a function of one file's bytes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import formats_support as foreign
import pandas as pd
import torch

from stages.preset import AllParams
from transcoders import Transcoder, load
from transcoders.circuits.prompts import Prompt, read_prompts
from transcoders.collecting.settings import TextSettings
from transcoders.collecting.text import documents
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
"""Inputs that once did what they must not, by target."""
LONGEST_LINE = 20_000
NPZ = "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_2"


class Target(NamedTuple):
    """A reader, and a valid input of it."""

    make: Callable[[Path], Path]
    """Writes whole, valid files into a folder; returns the one whose bytes are changed."""
    read: Callable[[Path], object]
    """Reads that file, and those beside it."""


def _of(write: Callable[..., Path], name: str, skip: bool = True, **kwargs: object) -> Callable[[Path], Path]:
    small = foreign.raw(skip=skip, d_in=3, d_out=3, d_hidden=4, **kwargs)
    return lambda folder: write(folder, small) / name


def _ours(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        Transcoder(
            TranscoderConfig(
                d_in=3, d_out=3, d_hidden=4, k=2, prefixes=(2, 4), prefix_k=(1, 2), provenance={"layer": 1}
            )
        ).save(folder)
        return folder / name

    return make


def _set(name: str) -> Callable[[Path], Path]:
    small = [foreign.raw(d_in=3, d_out=3, d_hidden=4)]
    return lambda folder: foreign.circuit_tracer(folder, small) / name


def _file(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def _parquet(folder: Path) -> Path:
    pd.DataFrame({"text": ["one two", "three", "four"], "n": [1, 2, 3]}).to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


def _transcoder(file: Path) -> object:
    model = load(file.parent)
    return model(torch.ones(2, model.config.d_in))


def _layer(file: Path) -> object:
    return load(file.parent / "layer_0.safetensors")


def _text(file: Path) -> object:
    found = [document.text for document in documents(TextSettings(source="file", path=str(file)))]
    assert all(type(text) is str for text in found)
    return found


TARGETS = {
    "gemma_scope_npz": Target(_of(lambda f, t: foreign.gemma_scope(f, t, NPZ), "params.npz", skip=False), _transcoder),
    "gemma_scope_2_weights": Target(_of(foreign.gemma_scope_2, "params.safetensors"), _transcoder),
    "gemma_scope_2_config": Target(_of(foreign.gemma_scope_2, "config.json"), _transcoder),
    "saelens_weights": Target(_of(foreign.saelens, "sae_weights.safetensors"), _transcoder),
    "saelens_config": Target(_of(foreign.saelens, "cfg.json"), _transcoder),
    "sparsify_weights": Target(
        _of(lambda f, t: foreign.sparsify(f, t, k=2), "sae.safetensors", threshold=False), _transcoder
    ),
    "sparsify_config": Target(_of(lambda f, t: foreign.sparsify(f, t, k=2), "cfg.json", threshold=False), _transcoder),
    "circuit_tracer_weights": Target(_set("layer_0.safetensors"), _layer),
    "circuit_tracer_config": Target(_set("config.yaml"), _layer),
    "ours_weights": Target(_ours("transcoder.safetensors"), _transcoder),
    "ours_config": Target(_ours("config.json"), _transcoder),
    "text_txt": Target(_file("t.txt", "one\ntwo\n\nthree\n"), _text),
    "text_jsonl": Target(_file("t.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in ("one", "two"))), _text),
    "text_parquet": Target(_parquet, _text),
    "prompts": Target(
        _file("p.yaml", '- {name: a, task: t, text: x y, answer: " z", foil: " w"}\n'),
        lambda path: read_prompts(path, Prompt, "circuits.prompts"),
    ),
    "params": Target(_file("params.yaml", (ROOT / "params.yaml").read_text()), AllParams.read),
}


@contextmanager
def opened(name: str, folder: Path) -> Iterator[tuple[bytes, Callable[[bytes], bool]]]:
    """A valid input of target ``name``, and a function that says whether an input was accepted.

    That raises what a reader must not: anything but one line for the user.
    """
    target = TARGETS[name]
    file = target.make(folder)

    def accepted(content: bytes) -> bool:
        file.write_bytes(content)
        try:
            target.read(file)
        except UserError as error:
            said = str(error)
        else:
            return True
        assert "\n" not in said, said
        assert len(said) < LONGEST_LINE, f"{len(said)} characters"
        return False

    yield file.read_bytes(), accepted
