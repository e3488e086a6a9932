"""The sanity checks that a user of this method expects, and what to try when one fails."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from transcoders.comparison.results import RunResult

log = logging.getLogger(__name__)


class Check(NamedTuple):
    """Hold one check of one run."""

    run: str
    name: str
    value: float
    wanted: str
    passed: bool
    remedy: str


REMEDIES = {
    "loss_decreased": "raise train.epochs or train.learning_rate; if it is NaN or grows, lower the rate",
    "l0": "latents are negative or dead: train longer, check train.dead_after_tokens",
    "nmse": "train longer (train.epochs, collect.tokens), raise train.k or train.d_hidden",
    "cosine": "as for nmse; a value near 0 means wrong hooks or another model's activations",
    "r2": "as for nmse; if validation is much worse than training, give more tokens",
    "dead_fraction": "lower train.dead_after_tokens or raise train.aux_coefficient; evaluate more tokens "
    "(a rare latent needs many to be seen)",
    "beats_affine": "the latents add nothing yet: train longer, raise train.k",
}


def sanity_checks(run: str, k: int, history: pd.DataFrame, row: pd.Series, affine_fvu: float) -> list[Check]:
    """Check one run by its training history and its row of the comparison's table."""
    first, last = float(history["nmse"].iloc[0]), float(history["nmse"].iloc[-1])
    l0_error = abs(float(row["l0"]) - k) / k
    verdicts = {
        "loss_decreased": (last / first, "last / first nmse < 0.9", last < 0.9 * first),
        "l0": (float(row["l0"]), f"within 5 % of k = {k}", l0_error < 0.05),
        "nmse": (float(row["nmse"]), "< 0.5", row["nmse"] < 0.5),
        "cosine": (float(row["cosine"]), "> 0.7", row["cosine"] > 0.7),
        "r2": (float(row["r2"]), "> 0.5", row["r2"] > 0.5),
        "dead_fraction": (float(row["dead_fraction"]), "< 0.1", row["dead_fraction"] < 0.1),
        "beats_affine": (float(row["fvu"]) / affine_fvu, "fvu / affine map's < 1", row["fvu"] < affine_fvu),
    }
    return [
        Check(run, name, value, wanted, bool(passed), REMEDIES[name])
        for name, (value, wanted, passed) in verdicts.items()
    ]


def check_all(results: Iterable[RunResult], table: pd.DataFrame) -> list[Check]:
    """Check every run, and log what came out: what failed, with its remedy, as a warning."""
    checks = []
    for result in results:
        row, affine = (table[table["name"] == name].iloc[0] for name in (result.name, f"affine-{result.layer}"))
        checks += sanity_checks(result.name, result.config["k"], result.history, row, float(affine["fvu"]))
    for check in checks:
        level = logging.INFO if check.passed else logging.WARNING
        remedy = "" if check.passed else f": NO; {check.remedy}"
        log.log(level, "%s %s = %.4g (%s)%s", check.run, check.name, check.value, check.wanted, remedy)
    return checks


def as_markdown(checks: list[Check]) -> str:
    """Return a table of ``checks``; a remedy stands only where it is needed."""
    lines = ["| run | check | value | wanted | verdict | try |", "|---|---|---|---|---|---|"]
    for check in checks:
        verdict, remedy = ("ok", "") if check.passed else ("**no**", check.remedy)
        lines.append(f"| {check.run} | {check.name} | {check.value:.4g} | {check.wanted} | {verdict} | {remedy} |")
    return "\n".join(lines)
