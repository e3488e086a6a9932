"""Stage `split`: which documents train, validate and test."""

import argparse
from pathlib import Path

import pandas as pd

from stages.entry import entry
from stages.params import load_params
from transcoders.activations.split import split_documents
from transcoders.files import replacing


def run() -> None:
    """data/documents.parquet -> data/split.parquet."""
    settings = load_params().split
    documents = pd.read_parquet("data/documents.parquet")
    with replacing(Path("data/split.parquet")) as path:
        split_documents(documents, settings).to_parquet(path)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    entry(run)
