"""Stage `model`: the base model as a Hugging Face folder in data/model."""

import argparse
from pathlib import Path

from stages.entry import entry
from stages.params import load_params
from transcoders.language.model import fetch_model

MODEL = Path("data/model")


def run() -> None:
    """Fetch and, if it comes as GGUF, convert the model that params.yaml names."""
    fetch_model(load_params().model, MODEL)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    entry(run)
