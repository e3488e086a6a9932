"""How every stage starts and ends: logging, one line per user error, the right exit status."""

import logging
import sys
from collections.abc import Callable

from transcoders.core.errors import UserError, line_on_files

log = logging.getLogger("mtxplt")


def entry(work: Callable[[], None]) -> None:
    """Run ``work`` and exit: 0, 1 after an error that the user can mend, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "transformers", "gensim", "torch", "aiobotocore", "botocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        work()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        log.error("interrupted: nothing unfinished was kept as an output; rerun to continue")
        sys.exit(130)
    except OSError as error:
        line = line_on_files(error)
        if line is None:
            raise
        sys.exit(f"error: {line}")
