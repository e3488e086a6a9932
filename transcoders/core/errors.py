"""The one exception that users meet: something they can mend."""

import errno


class UserError(Exception):
    """Tell of bad input in one line that names the key or file, its value and the remedy."""


DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    RecursionError,
    AssertionError,
)
"""What the libraries that read files raise, depending on which byte of a damaged one is wrong."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EROFS, errno.EACCES, errno.EPERM)


def line_on_files(error: OSError) -> str | None:
    """Return one line on a disk that is full or must not be written; None for errors that are not the user's."""
    name = error.filename or "while writing"
    if error.errno in FULL:
        return f"the disk is full ({name}); free some, rerun"
    if error.errno in DENIED:
        return f"no permission to write or read ({name}: {error.strerror}); make it writable, rerun"
    return None
