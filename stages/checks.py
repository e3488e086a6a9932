"""The sanity checks that a user of this method expects, and what to try when one fails."""

from typing import NamedTuple

import pandas as pd


class Check(NamedTuple):
    """One check of one run."""

    run: str
    name: str
    value: float
    wanted: str
    passed: bool
    remedy: str


def sanity_checks(run: str, k: int, history: pd.DataFrame, row: pd.Series, affine_fvu: float) -> list[Check]:
    """Checks of one run from its training history and its row of the comparison table."""
    first, last = float(history["nmse"].iloc[0]), float(history["nmse"].iloc[-1])
    skip_l0 = abs(float(row["l0"]) - k) / k
    return [
        Check(run, "loss_decreased", last / first, "last / first nmse < 0.9", last < 0.9 * first,
              "raise train.epochs or train.learning_rate; if it is NaN or grows, lower the rate"),
        Check(run, "l0", float(row["l0"]), f"within 5 % of k = {k}", skip_l0 < 0.05,
              "latents are negative or dead: train longer, check train.dead_after_tokens"),
        Check(run, "nmse", float(row["nmse"]), "< 0.5", row["nmse"] < 0.5,
              "train longer (train.epochs, collect.tokens), raise train.k or train.d_hidden"),
        Check(run, "cosine", float(row["cosine"]), "> 0.7", row["cosine"] > 0.7,
              "as for nmse; a value near 0 means wrong hooks or another model's activations"),
        Check(run, "r2", float(row["r2"]), "> 0.5", row["r2"] > 0.5,
              "as for nmse; if validation is much worse than training, give more tokens"),
        Check(run, "dead_fraction", float(row["dead_fraction"]), "< 0.1", row["dead_fraction"] < 0.1,
              "lower train.dead_after_tokens or raise train.aux_coefficient; evaluate more tokens "
              "(a rare latent needs many to be seen)"),
        Check(run, "beats_affine", float(row["fvu"]) / affine_fvu, "fvu / affine map's < 1",
              row["fvu"] < affine_fvu,
              "the latents add nothing yet: train longer, raise train.k"),
    ]  # fmt: skip


def as_markdown(checks: list[Check]) -> str:
    """A table; the remedy stands only where it is needed."""
    lines = ["| run | check | value | wanted | verdict | try |", "|---|---|---|---|---|---|"]
    for c in checks:
        verdict, remedy = ("ok", "") if c.passed else ("**no**", c.remedy)
        lines.append(f"| {c.run} | {c.name} | {c.value:.4g} | {c.wanted} | {verdict} | {remedy} |")
    return "\n".join(lines)
