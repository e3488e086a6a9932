"""Stage `split`: which documents train, validate and test."""

from stages.common.entry import entry, no_arguments
from stages.common.params import StageParams
from stages.common.paths import DOCUMENTS, SPLIT
from transcoders.activations.settings import SplitSettings
from transcoders.activations.split import split_documents
from transcoders.core.tables import read_parquet, write_parquet


class Params(StageParams):
    """What decides this stage."""

    split: SplitSettings


def work() -> None:
    """Divide data/documents.parquet into data/split.parquet."""
    documents = read_parquet(DOCUMENTS, "collect", ["title", "tokens"])
    write_parquet(split_documents(documents, Params.read().split), SPLIT)


if __name__ == "__main__":
    no_arguments(__doc__)
    entry(work)
