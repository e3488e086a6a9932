"""Text from a data set of the Hugging Face Hub, streamed."""

from collections.abc import Iterator

from transcoders.collecting.settings import TextSettings
from transcoders.collecting.text.document import Document, checked_document
from transcoders.core.errors import UserError


def read_hub(settings: TextSettings) -> Iterator[Document]:
    """Yield the rows of the data set ``settings.path``.

    Raises:
        UserError: it cannot be reached, or lacks the column.
    """
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    path, column = str(settings.path), settings.column
    try:
        rows = load_dataset(path, settings.subset, split=settings.split, revision=settings.revision, streaming=True)
        for number, row in enumerate(rows):
            if column not in row:
                raise UserError(f"collect.text.column: {path!r} has no column {column!r}; it has {', '.join(row)}")
            yield checked_document(f"{path}:{number}", row[column], column, "hub")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"collect.text.path: could not stream {path!r} from the Hugging Face Hub "
            f"({type(error).__name__}: {error}); check its id, split and your connection, or use "
            "source: summaries, which needs none"
        ) from error
