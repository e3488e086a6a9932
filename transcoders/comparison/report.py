"""The comparison as a page of text."""

import pandas as pd

from transcoders.comparison import checks, hypotheses
from transcoders.comparison.columns import PRUNED

TABLE = (
    "l0",
    "nmse",
    "fvu",
    "r2",
    "cosine",
    "dead_fraction",
    "mean_max_cosine",
    "delta_ce",
    "loss_recovered",
    "kl",
    "top1_agreement",
    "mean_absorption",
    "splitting",
    "training_tokens",
)


def main_columns(table: pd.DataFrame) -> str:
    """Return the main columns of the table of runs, baselines and official transcoders."""
    return as_markdown(table.reindex(columns=["name", "kind", *TABLE]))


def report(
    table: pd.DataFrame,
    pruned: pd.DataFrame,
    judged: pd.DataFrame,
    contrasts: pd.DataFrame,
    checked: list[checks.Check],
) -> str:
    """Return the whole page: runs, pruned dictionaries, hypotheses, contrasts and checks, as far as there are any."""
    text = f"# Comparison on {int(table['tokens'].max())} held-out tokens\n\n{main_columns(table)}\n"
    if len(pruned):
        text += f"\n# Plain dictionaries, pruned to the prefixes\n\n{as_markdown(pruned[list(PRUNED)])}\n"
    if len(judged):
        text += f"\n# Hypotheses\n\n{hypotheses.as_markdown(judged)}\n"
    if len(contrasts):
        text += "\n# Differences between variants\n\n95 % intervals over documents and seeds\n\n"
        text += f"{as_markdown(contrasts)}\n"
    return f"{text}\n# Checks\n\n{checks.as_markdown(checked)}\n"


def as_markdown(table: pd.DataFrame) -> str:
    """Return ``table`` with four digits a number; what is missing stays empty."""
    return table.to_markdown(index=False, floatfmt=".4g", missingval="")
