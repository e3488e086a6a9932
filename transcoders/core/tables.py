"""Tables in files: a damaged one is told in one line and never half believed."""

from pathlib import Path
from typing import Any

import pandas as pd

from transcoders.core.errors import DAMAGE, UserError
from transcoders.core.files import replacing


def write_parquet(table: pd.DataFrame, path: Path, **options: Any) -> None:
    """Write ``table`` whole or not at all, with a checksum of every page."""
    with replacing(path) as temporary:
        table.to_parquet(temporary, write_page_checksum=True, **options)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write ``table`` whole or not at all, every number to its last digit."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


def read_parquet(path: Path, stage: str, columns: list[str]) -> pd.DataFrame:
    """Read ``columns`` of a table that ``stage`` wrote.

    Raises:
        UserError: it is missing, damaged, or lacks a column.
    """
    return _read(lambda: pd.read_parquet(path, columns=columns, page_checksum_verification=True), path, stage)


def read_csv(path: Path, stage: str) -> pd.DataFrame:
    """Read a CSV that ``stage`` wrote; it may have no rows.

    Raises:
        UserError: it is missing or damaged.
    """
    return _read(lambda: pd.read_csv(path), path, stage)


def read_rows(path: Path, stage: str) -> pd.DataFrame:
    """Read a CSV that ``stage`` wrote, which must have rows.

    Raises:
        UserError: it is missing or damaged, or has none.
    """
    table = read_csv(path, stage)
    if table.empty:
        raise UserError(f"{path}: no rows; write it anew with `dvc repro -f {stage}`")
    return table


def _read(read: Any, path: Path, stage: str) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"{path}: no such file; `dvc repro {stage}` writes it")
    try:
        return read()
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged ({reason}); remove it and run `dvc repro {stage}`") from None


def six_digits(table: pd.DataFrame) -> pd.DataFrame:
    """Return ``table`` with its fractions to six significant digits, as metrics in JSON have them."""
    return table.map(lambda value: float(f"{value:.6g}") if isinstance(value, float) else value)
