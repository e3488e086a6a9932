"""How every stage starts and ends: arguments, logging, one line per user error, the right exit status."""

import argparse
import logging
import sys
from collections.abc import Callable

from stages.common.paths import Run
from stages.common.spans import LayersRun
from transcoders.core.errors import UserError, line_on_files

log = logging.getLogger("mtxplt")
CHATTY_LIBRARIES = ("httpx", "transformers", "gensim", "torch", "aiobotocore", "botocore", "openai")


def entry(work: Callable[[], object]) -> None:
    """Run ``work`` and exit: with 0, with 1 after an error that the user can mend, with 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
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


def no_arguments(description: str | None) -> None:
    """Accept nothing but ``--help`` on the command line."""
    argparse.ArgumentParser(description=description).parse_args()


def number_argument(description: str | None, name: str) -> int:
    """Read the one number, a layer or a seed, that the command line holds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(name, type=int)
    return int(getattr(parser.parse_args(), name))


def run_arguments(description: str | None) -> Run:
    """Read VARIANT LAYER SEED from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("variant", help="a key of variants in params.yaml")
    parser.add_argument("layer", type=int)
    parser.add_argument("seed", type=int)
    return Run(**vars(parser.parse_args()))


def layers_run_arguments(description: str | None) -> LayersRun:
    """Read VARIANT SPAN SEED from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("variant", help="a key of variants in params.yaml, with reach")
    parser.add_argument("span", help="layers of collect.layers, such as 0to17 or 3to5+9")
    parser.add_argument("seed", type=int)
    return LayersRun(**vars(parser.parse_args()))
