"""The plot stage: which files it writes, that they are stable, and what it says of bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from stages import plot
from transcoders.core.errors import UserError
from transcoders.figures import runs
from transcoders.figures import style as figures
from transcoders.figures.tables import placed_by_sparsity, shares, thin, ways_of

ROOT = Path(__file__).parents[2]
RUNS = ["topk-9-0", "topk-0-0", "nested-9-0", "nested-0-0"]
PLAIN_FIGURES = ["comparison", "detection_scores", "firing_density", "frontier", "training_curves", "word_classes_9"]
FIGURES = [*PLAIN_FIGURES, "dead_by_group", "decoder_overlap", "phases", "prefixes"]


def history(steps: int, phases: int = 0) -> pd.DataFrame:
    step = np.arange(1, steps + 1)
    fall = 0.2 + np.exp(-step / 50)
    return pd.DataFrame(
        {
            "step": step,
            "tokens": 1024 * step,
            "epoch": step / steps,
            "phase": 1 + (step > steps / 2) * phases,
            "latents": np.where(step > steps / 2, 5120, 640),
            "loss": fall + 0.01,
            "nmse": fall,
            "aux_loss": fall,
            "l0": 32.0,
            "l1": 50.0,
            "dead_fraction": 0.1 / step,
            "learning_rate": 1e-3,
            "gradient_norm": fall,
            "validation_nmse": np.where(step % 100 == 0, fall, np.nan),
        }
    )


def density() -> pd.DataFrame:
    edges = [-np.inf, *np.arange(-4, 0, 0.25)]
    return pd.DataFrame({"log10_frequency": edges, "latents": [7, 0, 0, 0, 0, *range(1, 9), 0, 0, 0, 0]})


def scores() -> pd.DataFrame:
    return pd.DataFrame({"score": [0.475, 0.525, 0.975], "latents": [1, 2, 1], "share": [0.25, 0.5, 0.25]})


def comparison() -> pd.DataFrame:
    columns = ["name", "kind", "variant", "layer", "l0", "fvu", "loss_recovered"]
    rows = [
        ("topk-9-0", "trained", "topk", 9, 32.0, 0.24, 0.93),
        ("nested-9-0", "trained", "nested", 9, 32.0, 0.26, 0.92),
        ("topk-0-0", "trained", "topk", 0, 32.0, 0.08, 0.99),
        ("nested-0-0", "trained", "nested", 0, 32.0, 0.09, 0.98),
        ("mean-9", "baseline", "mean", 9, None, 1.0, 0.0),
        ("untrained-9", "baseline", "untrained", 9, 32.0, 1.3, -0.1),
        ("scope-9", "official", "jumprelu", 9, 14.0, 0.31, None),
    ]
    return pd.DataFrame(rows, columns=columns)


def groups(nested: bool) -> pd.DataFrame:
    stops = [640, 5120] if nested else [5120]
    return pd.DataFrame(
        {
            "group": range(1, len(stops) + 1),
            "start": [0, *stops[:-1]],
            "stop": stops,
            "k": 16,
            "l0": 16.0,
            "fvu": np.linspace(0.5, 0.25, len(stops)),
            "loss_recovered": 0.7,
            "group_dead_fraction": 0.02,
            "mean_max_cosine_earlier": 0.3,
            "novel_fraction": 0.9,
        }
    )


def overlap(nested: bool) -> pd.DataFrame:
    pairs = [(i, j) for i in (1, 2) for j in (1, 2)] if nested else [(1, 1)]
    return pd.DataFrame([(i, j, 0.2 + 0.1 * i) for i, j in pairs], columns=["group", "other", "mean_max_cosine"])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the results of three runs."""
    for name in RUNS:
        (tmp_path / "models" / name).mkdir(parents=True)
        nested = name.startswith("nested")
        history(3000, phases=int(nested)).to_csv(tmp_path / "models" / name / "history.csv", index=False)
        tables = {"density": density(), "groups": groups(nested), "overlap": overlap(nested), "scores": scores()}
        for kind, table in tables.items():
            path = tmp_path / "data" / ("features" if kind == "scores" else "evaluate") / name / f"{kind}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            table.to_csv(path, index=False)
    for folder in ("compare", "pruned", "classes/layer_9", "classes/layer_0"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    names = ["untrained", "topk-9-0", "nested-9-0"]
    words = pd.DataFrame({"name": names * 2, "class": ["month"] * 3 + ["colour"] * 3, "generality": 0.1})
    words.to_csv(tmp_path / "data/classes/layer_9/classes.csv", index=False)
    words.iloc[:0].to_csv(tmp_path / "data/classes/layer_0/classes.csv", index=False)
    comparison().to_csv(tmp_path / "data/compare/runs.csv", index=False)
    write_params(tmp_path, ["topk", "nested"])
    cut = pd.DataFrame({"name": ["topk-9-0"], "layer": 9, "latents": 640, "k": 16, "l0": 16.0, "fvu": 0.6})
    cut.assign(loss_recovered=0.5).to_csv(tmp_path / "data/pruned/layer_9.csv", index=False)
    cut.iloc[:0].assign(loss_recovered=[]).to_csv(tmp_path / "data/pruned/layer_0.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_params(root: Path, variants: list[str]) -> None:
    settings = {"variants": variants, "layers": [9, 0], "seeds": [0]}
    YAML().dump({"runs": settings, "variants": {name: {} for name in variants}}, root / "params.yaml")


def files_under(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_tables_and_figures_are_written_and_are_the_same_bytes_again(root: Path) -> None:
    plot.work()
    first = files_under(root / "plots")
    plot.work()

    assert files_under(root / "plots") == first
    assert sorted(first) == sorted(
        ["data/comparison.csv", "data/curves.csv", "data/density.csv", "data/prefixes.csv", "data/scores.csv"]
        + ["template.html"]
        + [f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")]
    )
    assert not list(root.glob(".plots*"))


def test_curves_are_thinned_and_keep_the_ends_and_every_validation(root: Path) -> None:
    plot.work()
    curves = pd.read_csv(root / "plots/data/curves.csv")

    assert list(curves.columns) == ["run", *history(1).columns]
    assert list(curves["run"].unique()) == RUNS
    one = curves[curves["run"] == RUNS[0]]
    assert len(one) < 1000
    assert (one["step"].iloc[0], one["step"].iloc[-1]) == (1, 3000)
    assert one["validation_nmse"].notna().sum() == 30


def test_a_run_that_validates_at_every_step_is_thinned_too() -> None:
    every = history(5000).assign(validation_nmse=0.5)
    assert len(thin(every)) < 1000


def test_a_short_history_is_kept_whole() -> None:
    assert len(thin(history(3))) == 3


def test_density_is_a_share_per_bin_at_the_bins_centre() -> None:
    table = shares(density())

    assert table["share"].sum() == pytest.approx(1)
    assert table["log10_frequency"].iloc[0] == -np.inf
    assert table["latents"].iloc[0] == 7
    assert table["log10_frequency"].iloc[2] == pytest.approx(-3 + 0.125)
    assert len(table) == 1 + 8 + 2, "the bins in use, an empty one at either side, and never"


def test_one_run_with_nothing_else_can_be_plotted(root: Path) -> None:
    comparison().head(1).to_csv(root / "data/compare/runs.csv", index=False)
    params = {"runs": {"variants": ["topk"], "layers": [9], "seeds": [0]}, "variants": {"topk": {}}}
    YAML().dump(params, root / "params.yaml")
    plot.work()
    assert (root / "plots/figures/frontier.png").stat().st_size > 10_000
    assert sorted(path.stem for path in (root / "plots/figures").glob("*.png")) == PLAIN_FIGURES


def test_prefixes_of_nested_runs_stand_beside_pruned_plain_ones(root: Path) -> None:
    plot.work()
    table = pd.read_csv(root / "plots/data/prefixes.csv").set_index("name")
    assert table.loc["nested-9-0", "latents"].tolist() == [640, 5120]
    assert table.loc["topk-9-0 pruned", ["run", "layer", "fvu"]].tolist() == ["topk-9-0", 9, 0.6]
    assert table.loc["topk-0-0", "layer"] == 0


def test_the_seeds_of_a_variant_share_a_colour_and_a_legend_entry() -> None:
    colours = figures.colours_of(["topk-9-0", "topk-9-1", "plt-9-0", "plt-9-1"])
    assert len(set(colours.values())) == 2
    assert list(figures.legend_names(colours)) == ["topk-9", "plt-9"]
    assert list(figures.legend_names(figures.colours_of(RUNS))) == RUNS


FRONTIER = {"topk_k8": {"k_share": 0.25}, "topk_k16": {"k_share": 0.5}, "topk": {}, "half": {"d_hidden_share": 0.5}}


def test_variants_that_differ_in_k_alone_are_one_way_to_train() -> None:
    assert ways_of(FRONTIER, [9]) == {
        "topk_k8-9": "topk-9",
        "topk_k16-9": "topk-9",
        "topk-9": "topk-9",
        "half-9": "half-9",
    }
    assert ways_of({"topk_k8": {}, "plt": {"training": "progressive"}}, [0, 1])["topk_k8-1"] == "topk_k8-1"


def test_the_runs_of_one_way_have_shades_of_one_colour() -> None:
    colours = figures.colours_of([f"{name}-9-{seed}" for name in FRONTIER for seed in (0, 1)], ways_of(FRONTIER, [9]))
    assert len(set(colours.values())) == 4
    assert colours["topk_k8-9-0"] == colours["topk_k8-9-1"]
    assert (colours["topk-9-0"], colours["half-9-0"]) == figures.PALETTE[:2]


def test_one_curve_joins_the_several_l0_of_a_way_and_one_the_ranks_of_pca() -> None:
    rows = [
        (f"{name}-9-{seed}", "trained", name, 9, 8.0 * n + seed, 1 / n, 0.5)
        for n, name in enumerate(FRONTIER, 1)
        for seed in (0, 1)
    ]
    rows += [(f"pca_rank_{rank}-9", "baseline", f"pca_rank_{rank}", 9, np.nan, 1 / rank, 0.4) for rank in (8, 64)]
    rows += [("affine-9", "baseline", "affine", 9, np.nan, 0.3, 0.6)]
    ways = ways_of(FRONTIER, [9])
    table = placed_by_sparsity(pd.DataFrame(rows, columns=comparison().columns), ways)
    assert table["way"].unique().tolist() == ["topk-9", "half-9", "pca-9", "affine-9"]
    left, right = runs.frontier(table, figures.colours_of([row[0] for row in rows[:8]], ways)).axes
    for axes in (left, right):
        curves = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) > 1 and line.get_xdata()[0] > 1]
        assert [list(curve) for curve in curves] == [[8.5, 16.5, 24.5], [8, 64]]
        assert [text.get_text() for text in axes.texts] == ["pca-9", "affine-9"]
    [legend] = left.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["topk-9", "half-9", "baseline"]


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("models/topk-9-0/history.csv", "train@topk-9-0"),
        ("data/evaluate/topk-9-0/density.csv", "evaluate@topk-9-0"),
        ("data/compare/runs.csv", "compare"),
    ],
)
@pytest.mark.parametrize("content", [None, ""])
def test_a_missing_or_empty_input_is_named_with_its_stage_and_nothing_is_replaced(
    root: Path, file: str, stage: str, content: str | None
) -> None:
    plot.work()
    before = files_under(root / "plots")
    (root / file).unlink()
    if content is not None:
        (root / file).write_text(content)

    with pytest.raises(UserError, match=f"{file}.*dvc repro .*{stage}") as caught:
        plot.work()

    assert "\n" not in str(caught.value)
    assert files_under(root / "plots") == before


@pytest.mark.parametrize("template", ["curve", "curve_log", "histogram", "scores", "bars", "frontier", "prefixes"])
def test_a_run_has_the_same_colour_in_figures_and_on_the_page(template: str) -> None:
    specification = json.loads((ROOT / ".dvc/plots" / f"{template}.json").read_text())
    ranges = colour_ranges(specification)
    assert list(figures.PALETTE) in ranges
    assert all(r in (list(figures.PALETTE), list(figures.KIND_COLOURS.values())) for r in ranges)


def colour_ranges(node: object) -> list[list[str]]:
    """Every ``color`` encoding's range, anywhere in a Vega-Lite specification."""
    if isinstance(node, list):
        return [found for child in node for found in colour_ranges(child)]
    if not isinstance(node, dict):
        return []
    colour = node.get("color")
    own = [colour["scale"]["range"]] if isinstance(colour, dict) and "scale" in colour else []
    return own + [found for child in node.values() for found in colour_ranges(child)]


def test_help_is_there() -> None:
    done = subprocess.run([sys.executable, "-m", "stages.plot", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage: python -m" in done.stdout or "usage: plot" in done.stdout
