"""Stage `split`: which documents train, validate and test."""

import argparse
from pathlib import Path

from stages.entry import entry
from stages.params import load_params
from transcoders.activations.split import split_documents
from transcoders.core.tables import read_parquet, write_parquet


def run() -> None:
    """data/documents.parquet -> data/split.parquet."""
    settings = load_params().split
    documents = read_parquet(Path("data/documents.parquet"), "collect", ["title", "tokens"])
    write_parquet(split_documents(documents, settings), Path("data/split.parquet"))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    entry(run)
