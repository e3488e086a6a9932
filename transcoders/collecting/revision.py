"""Which state of a data set on the Hugging Face Hub is collected from."""

from transcoders.collecting.settings import TextSettings
from transcoders.core.errors import UserError
from transcoders.core.hub import commit_of


def pinned(text: TextSettings) -> TextSettings:
    """Return ``text`` with the commit that its data set on the Hub is at now; other text as it is.

    Raises:
        UserError: the Hub does not answer, or knows no such data set.
    """
    if "hub" not in text.source or text.path is None:
        return text
    try:
        commit = commit_of("dataset", "collect.text.path", text.path, text.revision)
    except OSError as error:
        raise UserError(
            f"collect.text.path: could not find {text.path!r} on the Hugging Face Hub ({type(error).__name__}); check "
            "its id, collect.text.revision and your connection, or use text that needs none"
        ) from error
    return text.model_copy(update={"revision": commit})
