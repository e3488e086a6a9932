"""The feature browser: a static folder that opens from disk, its data in scripts that load on demand."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from transcoders.features.scores import LEAST

ASSETS = Path(__file__).parent / "page"
CHUNK = 32
"""Latents in a data file."""


def write_page(
    folder: Path,
    run: str,
    latents: pd.DataFrame,
    contexts: pd.DataFrame,
    documents: Sequence[str],
    summary: Sequence[tuple[str, str]],
) -> None:
    """Write index.html, its style and script, and data/*.js into the new ``folder``.

    ``latents`` and ``contexts`` are the tables of tables.py; ``documents``: titles;
    ``summary``: what stands beside the title.
    """
    (folder / "data").mkdir(parents=True)
    for asset in sorted(ASSETS.iterdir()):
        shutil.copyfile(asset, folder / asset.name)
    explainers = sorted(set(latents["explainer"]))
    groups = int(latents["group"].max())
    index = {
        "run": run,
        "summary": summary,
        "chunk": CHUNK,
        "groups": groups,
        "least_unseen": LEAST,
        "documents": list(documents),
        "explainer": explainers,
        "latent": latents["latent"].tolist(),
        "group": latents["group"].tolist(),
        "density": _short(latents["density"]),
        "max": _short(latents["max"]),
        "score": [None if np.isnan(score) else round(score, 3) for score in latents["score"]],
        "description": latents["description"].tolist(),
        "search": [_search(row) for row in latents[["latent", "description", "promoted"]].itertuples()],
    }
    _script(folder / "data/index.js", "mtxplt.index(", index)
    of_latent: dict[Any, pd.DataFrame] = dict(iter(contexts.groupby("latent")))
    for number, start in enumerate(range(0, len(latents), CHUNK)):
        vocabulary: dict[str, int] = {}
        rows = [
            _detail(row, of_latent.get(row.latent), vocabulary, explainers)
            for row in latents.iloc[start : start + CHUNK].itertuples()
        ]
        content = {"latents": rows, "vocabulary": list(vocabulary)}
        _script(folder / f"data/{number:04d}.js", f"mtxplt.chunk({number},", content)


def _search(row: Any) -> str:
    return " ".join([str(row.latent), row.description, *(token.strip() for token in row.promoted)]).lower()


def _detail(row: Any, contexts: pd.DataFrame | None, vocabulary: dict[str, int], explainers: list[str]) -> Any:
    return {
        "explainer": explainers.index(row.explainer),
        "scored_on": row.scored_on,
        "firings": row.firings,
        "mean": _short([row.mean])[0],
        "bin_width": row.bin_width,
        "histogram": [int(count) for count in row.histogram],
        "promoted": _pairs(row.promoted, row.promoted_by),
        "suppressed": _pairs(row.suppressed, row.suppressed_by),
        "nearest": _pairs(row.nearest, row.nearest_cosine),
        "parents": _pairs(row.parents, row.parents_share),
        "children": _pairs(row.children, row.children_share),
        "contexts": [] if contexts is None else [_context(c, vocabulary) for c in contexts.itertuples()],
    }


def _context(row: Any, vocabulary: dict[str, int]) -> Any:
    values = np.asarray(row.values)
    places = np.flatnonzero(values > 0)
    return {
        "kind": row.kind,
        "document": int(row.document),
        "tokens": [vocabulary.setdefault(token, len(vocabulary)) for token in row.tokens],
        "active": _pairs(places.tolist(), values[places]),
    }


def _pairs(names: Sequence[Any], values: Any) -> list[tuple[Any, float]]:
    names = [int(name) if isinstance(name, np.integer) else name for name in names]
    return list(zip(names, _short(values), strict=True))


def _short(values: Any) -> list[float]:
    """Round to three significant digits: what a reader sees."""
    return [float(f"{value:.3g}") for value in values]


def _script(path: Path, call: str, content: Any) -> None:
    """Write JSON as a script, < escaped so that no browser takes text for markup, whatever loads the file."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in ("<", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    path.write_text(f"{call}{text});\n", encoding="utf-8")
