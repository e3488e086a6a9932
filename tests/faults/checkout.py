"""A checkout with a tiny language model and a tiny text, in which every stage takes a second or two."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from forks import Done, Forks, Job
from ruamel.yaml import YAML
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
STAGES = {
    "model": ("stages.model",),
    "collect": ("stages.collect",),
    "split": ("stages.split",),
    "words": ("stages.words", "1"),
    "train-topk": ("stages.train", "topk", "1", "0"),
    "train-plt": ("stages.train", "plt", "1", "0"),
    "clean": ("stages.clean", "1"),
    "evaluate-topk": ("stages.evaluate", "topk", "1", "0"),
    "evaluate-plt": ("stages.evaluate", "plt", "1", "0"),
    "absorption-topk": ("stages.absorption", "topk", "1", "0"),
    "absorption-plt": ("stages.absorption", "plt", "1", "0"),
    "features-topk": ("stages.features", "topk", "1", "0"),
    "features-plt": ("stages.features", "plt", "1", "0"),
    "baselines": ("stages.baselines", "1"),
    "floor": ("stages.floor", "1"),
    "probing": ("stages.probing", "1"),
    "pruned": ("stages.pruned", "1"),
    "official": ("stages.official",),
    "compare": ("stages.compare",),
    "circuits": ("stages.circuits", "0"),
    "plot": ("stages.plot",),
}
"""In the order of their dependencies."""
FEW = ("model", "collect", "split", "train-plt", "features-plt")
"""The stages that write most, and what they read."""
OUTS = {
    "model": ["data/model"],
    "collect": ["data/activations", "data/documents.parquet", "data/contexts.parquet", "data/collect.json"],
    "split": ["data/split.parquet"],
    "words": ["data/words/layer_1.safetensors"],
    "clean": ["data/clean/layer_1.safetensors"],
    "train-{}": ["models/{}-1-0"],
    "evaluate-{}": ["data/evaluate/{}-1-0"],
    "absorption-{}": ["data/absorption/{}-1-0"],
    "features-{}": ["data/features/{}-1-0"],
    "baselines": ["data/baselines/layer_1.csv"],
    "floor": ["data/floor/layer_1.json"],
    "probing": ["data/probing/layer_1.csv"],
    "pruned": ["data/pruned/layer_1.csv"],
    "official": ["data/official.csv"],
    "compare": ["data/compare", "metrics"],
    "circuits": ["data/circuits/0"],
    "plot": ["plots"],
}
LETTERS, WORDS_PER_LETTER = "abcdefgh", 45
UNSTABLE = ("data/live",)
"""Measured times, and the curves of a run under way."""


class Checkout(NamedTuple):
    """A folder to run stages in, with a cache of its own."""

    root: Path
    cache: Path
    forks: Forks

    def job(self, stage: str, **changes: object) -> Job:
        return Job(STAGES[stage], str(self.root), str(self.cache), **changes)

    def run(self, stage: str, **changes: object) -> Done:
        [done] = self.forks.run(self.job(stage, **changes))
        return done

    def outs(self, stage: str) -> list[Path]:
        """What DVC removes before the stage runs."""
        kind, _, variant = stage.partition("-")
        return [self.root / out.format(variant) for out in OUTS.get(stage) or OUTS[kind + "-{}"]]

    def forget(self, stage: str) -> None:
        """Remove the outs of ``stage``, as DVC does before it runs."""
        for out in self.outs(stage):
            if out.is_dir():
                shutil.rmtree(out)
            out.unlink(missing_ok=True)

    def files(self) -> dict[str, bytes]:
        """All outputs that ought to be the same bytes every time."""
        found = (path for folder in ("data", "models", "metrics", "plots") for path in walk(self.root / folder))
        names = {str(path.relative_to(self.root)): path for path in found}
        return {
            name: path.read_bytes()
            for name, path in names.items()
            if not name.startswith(UNSTABLE) and path.suffix != ".lock"
        }

    def copy(self, name: str) -> "Checkout":
        """The same checkout elsewhere, with an empty cache."""
        root = self.root.parent / name
        shutil.copytree(self.root, root / "checkout", symlinks=True)
        return Checkout(root / "checkout", root / "cache", self.forks)


class Undisturbed(NamedTuple):
    """A checkout after its stages, the seconds that each took, and its outputs."""

    checkout: Checkout
    seconds: dict[str, float]
    files: dict[str, bytes]


def walk(folder: Path) -> Iterator[Path]:
    for path, _, names in os.walk(folder):
        yield from (Path(path) / name for name in names)


def make(root: Path, forks: Forks) -> Checkout:
    """The sources of a checkout: parameters, prompts, text and model."""
    for kind in ("prompts", "text", "model", "transcoders"):
        (root / "inputs" / kind).mkdir(parents=True)
    write_model(root / "inputs/model/tiny")
    write_text(root / "inputs/text/text.jsonl")
    first, second = words()[:2]
    YAML().dump(
        [{"name": "one", "task": "t", "text": " ".join(words()[3:9]), "answer": f" {first}", "foil": f" {second}"}],
        root / "inputs/prompts/circuits.yaml",
    )
    params = YAML().load(ROOT / "params.yaml")
    for section, changes in {
        "model": {"name": "inputs/model/tiny"},
        "collect": {
            "layers": [1],
            "tokens": 80_000,
            "context_length": 64,
            "batch_size": 256,
            "text": {"source": "file", "path": "inputs/text/text.jsonl"},
        },
        "split": {"validation": 0.1, "test": 0.15},
        "runs": {"layers": [1], "variants": ["topk", "plt"]},
        "train": {
            "d_hidden": 64,
            "k": 6,
            "epochs": 1,
            "batch_size": 1024,
            "dead_after_tokens": 20_000,
            "log_every": 3,
            "validate_every": 9,
            "buffer_tokens": 8192,
        },
        "evaluate": {"tokens": 4000, "loss_tokens": 400, "bootstrap": 50},
        "absorption": {"words": 500, "least_probe_f1": 0.0},
        "features": {"tokens": 20_000, "top": 4, "sampled": 16, "unseen": 8},
        "checkpoints": {"every": 5},
        "circuits": {"seeds": [0], "loss_tokens": 200, "max_latents": 200},
    }.items():
        params[section].update(changes)
    params["features"]["describe"]["bootstrap"] = 50
    YAML().dump(params, root / "params.yaml")
    return Checkout(root, root.parent / "cache", forks)


def words() -> list[str]:
    rng = np.random.default_rng(1)
    made = {a + "".join(rng.choice(list("aeioumnrst"), 5)) for a in LETTERS for _ in range(2 * WORDS_PER_LETTER)}
    by_letter = {a: sorted(word for word in made if word[0] == a)[:WORDS_PER_LETTER] for a in LETTERS}
    return [word for row in zip(*by_letter.values(), strict=True) for word in row]


def write_model(folder: Path) -> None:
    """A Gemma 3 of 3 layers with random weights, whose tokens are whole words."""
    pieces = ["<pad>", "<bos>", "<unk>", *(f"▁{word}" for word in words())]
    tokenizer = Tokenizer(WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = Metaspace(), decoders.Metaspace()
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=0,
    )
    model = Gemma3ForCausalLM(config)
    for name, value in model.named_parameters():
        torch.nn.init.normal_(value, 1.0 if "norm" in name else 0.0, 0.3)
    initials = torch.randn(len(LETTERS), 16)
    model.get_input_embeddings().weight.data[3:] += initials[[LETTERS.index(word[0]) for word in words()]]
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<pad>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def write_text(path: Path) -> None:
    """160 documents of about 600 words, frequent and rare ones."""
    rng, vocabulary = np.random.default_rng(2), np.array(words())
    share = 1 / np.arange(5, len(vocabulary) + 5)
    lines = [" ".join(rng.choice(vocabulary, rng.integers(300, 900), p=share / share.sum())) for _ in range(160)]
    path.write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
