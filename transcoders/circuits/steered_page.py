"""The page of the interventions stage: what the model writes at every dose, side by side, and how far it moved."""

from collections.abc import Sequence
from html import escape

import pandas as pd

from transcoders.circuits.pages import document
from transcoders.circuits.prompts import SteeredPrompt

LEGEND = (
    "Held latents are set to a multiple (the dose) of a value, from their position on, also while the text goes on: 0 "
    "ablates them, 1 holds the value that they have in the prompt or that the prompts' file gives. Beside them as many "
    "latents that are active in the prompt, drawn at random. p is the probability of the answer at the prompt's end, "
    "KL the divergence (nats) of that prediction from the model's own; perplexity is that of the continuation under "
    "the model left alone."
)
GROUPS = {"chosen": "held latents", "random": "random latents"}


def steered_page(table: pd.DataFrame, prompts: Sequence[SteeredPrompt], title: str) -> str:
    """Return HTML with a section for each set of transcoders and prompt; ``table`` is that of ``dose_response``."""
    parts = ["<img src='doses.svg' alt='dose and response'>", f"<p class='pale'>{escape(LEGEND)}</p>"]
    for name, of_set in table.groupby("transcoders", sort=False):
        for prompt in prompts:
            rows = of_set[of_set["prompt"] == prompt.name]
            parts.append(f"<h2>{escape(f'{name}: {prompt.text} →{prompt.answer}')}</h2>")
            parts.append(_section(rows))
    return document(title, "\n".join(parts))


def _section(rows: pd.DataFrame) -> str:
    alone = rows[rows["group"] == "none"].iloc[0]
    groups = {name: of for name, of in rows.groupby("group", sort=False) if name in GROUPS}
    heads = "".join(f"<th>{GROUPS[str(name)]} {escape(of['latents'].iloc[0])}</th>" for name, of in groups.items())
    lines = [f"<tr><td>left alone</td><td colspan='{len(groups)}'>{_cell(alone)}</td></tr>"]
    for dose in rows.loc[rows["group"] != "none", "dose"].unique():
        cells = "".join(f"<td>{_cell(of[of['dose'] == dose].iloc[0])}</td>" for of in groups.values())
        lines.append(f"<tr><td>dose {dose:g}</td>{cells}</tr>")
    return f"<table class='texts'><tr><th></th>{heads}</tr>\n" + "\n".join(lines) + "</table>"


def _cell(row: "pd.Series[str]") -> str:
    facts = f"p {row['probability']:.3g} · KL {row['kl']:.3g} · perplexity {row['perplexity']:.3g}"
    return f"{escape(str(row['text']))}<br><small class='pale'>{facts}</small>"
