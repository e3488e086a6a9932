"""``python -m transcoders.figures.plots_page`` writes the page to its place in the repository."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from transcoders.core.files import replacing
from transcoders.figures.plots_page.build import build_page

PAGE = Path(".dvc/plots_page.html")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    argparse.ArgumentParser(
        prog="python -m transcoders.figures.plots_page",
        description=f"Write {PAGE}, the page of `dvc plots show` with Vega inside (no CDN).",
    ).parse_args(arguments)
    with replacing(PAGE) as temporary:
        temporary.write_text(build_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
