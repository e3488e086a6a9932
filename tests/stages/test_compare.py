"""The compare stage, on what the other stages write."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from comparison_support import letters, result, write
from ruamel.yaml import YAML

from stages.compare import work
from transcoders.core.errors import UserError

ROOT = Path(__file__).parents[2]
MEASURED = {
    "nmse": 0.8,
    "fvu": 1.00406,
    "r2": 0.0,
    "cosine": 0.39,
    "delta_ce": 0.153189,
    "loss_recovered": 0.27918,
    "kl": 0.18,
    "top1_agreement": 0.77,
    "tokens": 1000.0,
}
PRUNED = {"name": "topk-9-0", "layer": 9, "latents": 320, "k": 16, "l0": 16.0, "fvu": 0.5, "cosine": 0.7}
VERDICT = {"hypothesis": "H1", "statement": "less absorption", "effect": -0.2, "verdict": "supported", "seeds": 3}
OFFICIAL = "layer_9_width_16k"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout in which all stages before compare have run."""
    params = YAML().load(ROOT / "params.yaml")
    params["runs"] = {"variants": ["topk", "matryoshka"], "layers": [9], "seeds": [0]}
    params["evaluate"]["bootstrap"] = 50
    YAML().dump(params, tmp_path / "params.yaml")
    write(tmp_path, result("topk", 9, 0, dead=0.0061))
    write(tmp_path, result("matryoshka", 9, 0, dead=0.2))
    tables = {
        "baselines/layer_9": [
            {"name": f"{name}-9", "kind": "baseline", "variant": name, "layer": 9} | MEASURED for name in BASELINES
        ],
        "pruned/layer_9": [PRUNED | {"dead_fraction": 0.0, "delta_ce": 0.1, "loss_recovered": 0.5}],
        "classes/layer_9/hypotheses": [VERDICT | {"task": "word classes"}],
        "verdicts/layer_9/hypotheses": [VERDICT | {"task": "planted families"}],
        "official": [{"name": OFFICIAL, "kind": "official", "layer": 9, "l0": 76.2} | MEASURED],
    }
    for name, rows in tables.items():
        (tmp_path / f"data/{name}.csv").parent.mkdir(exist_ok=True, parents=True)
        pd.DataFrame(rows).to_csv(tmp_path / f"data/{name}.csv", index=False)
    (tmp_path / "data/floor").mkdir()
    (tmp_path / "data/floor/layer_9.json").write_text('{"detection_score": 0.6, "living": 5.0}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


BASELINES = ("mean", "affine", "untrained")
TASKS = ["first letters", "first letters", "held-out tokens", "word classes"]
NAMES = ["topk-9-0", "matryoshka-9-0", "mean-9", "affine-9", "untrained-9", OFFICIAL]


def test_tables_and_a_page_are_written(root):
    work()
    folder = root / "data/compare"
    files = ["checks.csv", "compare.md", "contrasts.csv", "hypotheses.csv", "runs.csv"]
    assert sorted(path.name for path in folder.iterdir()) == files
    runs = pd.read_csv(folder / "runs.csv").set_index("name")
    assert list(runs.index) == NAMES
    assert runs.loc["topk-9-0", "training_tokens"] == 600
    assert set(pd.read_csv(folder / "contrasts.csv")["metric"]) > {"fvu", "dead_fraction"}
    assert pd.read_csv(folder / "hypotheses.csv")["task"].tolist() == TASKS
    checks = pd.read_csv(folder / "checks.csv").set_index(["run", "name"])["passed"]
    assert checks["topk-9-0", "dead_fraction"]
    assert not checks["matryoshka-9-0", "dead_fraction"]
    page = (folder / "compare.md").read_text()
    for heading in ("Comparison on 1000 held-out tokens", "Plain dictionaries, pruned", "Hypotheses", "Checks"):
        assert f"# {heading}" in page
    assert "or raise train.aux_coefficient" in page


def test_verdicts_of_planted_families_are_those_of_the_layers_that_are_planted(root):
    params = YAML().load(root / "params.yaml")
    params["planted"]["layers"] = [9]
    YAML().dump(params, root / "params.yaml")
    work()
    assert pd.read_csv(root / "data/compare/hypotheses.csv")["task"].tolist() == [*TASKS, "planted families"]
    assert "planted families" in (root / "data/compare/compare.md").read_text()


def test_what_is_no_run_any_more_leaves_no_metrics(root):
    (root / "metrics").mkdir()
    (root / "metrics/gone-9-0.json").write_text("{}")
    work()
    assert {path.name for path in (root / "metrics").iterdir()} == {f"{name}.json" for name in NAMES}


def test_no_output_holds_a_time(root):
    for variant in ("topk", "matryoshka"):
        write(root, result(variant, 9, 0, training={"tokens": 600, "seconds": 45.0}))
    work()
    texts = [path.read_text() for folder in ("data/compare", "metrics") for path in (root / folder).iterdir()]
    assert not [text for text in texts if "seconds" in text]


def test_where_no_letter_is_readable_there_is_neither_absorption_nor_a_verdict_on_it(root):
    for variant in ("topk", "matryoshka"):
        run = result(variant, 9, 0, categories=letters(0.0, count=0).iloc[:0])
        write(root, run._replace(absorption={"task": "first letters", "categories": 0.0}))
    work()
    assert "absorption" not in json.loads((root / "metrics/topk-9-0.json").read_text())
    assert pd.read_csv(root / "data/compare/hypotheses.csv")["task"].tolist() == TASKS[2:]
    assert "topk-9-0" in (root / "data/compare/compare.md").read_text()


def test_the_untrained_dictionary_has_the_floor_of_the_scores_and_no_other_baseline_a_score(root):
    work()
    table = pd.read_csv(root / "data/compare/runs.csv").set_index("name")
    assert table.loc["untrained-9", "detection_score"] == 0.6
    assert table.loc[["mean-9", "affine-9"], "detection_score"].isna().all()
    assert "living" not in table


def test_a_missing_result_names_the_stage_that_writes_it(root):
    (root / "data/evaluate/topk-9-0/metrics.json").unlink()
    with pytest.raises(UserError, match=r"evaluate/topk-9-0/metrics\.json: .*dvc repro -f evaluate@topk-9-0"):
        work()
    write(root, result("topk", 9, 0))
    (root / "data/baselines/layer_9.csv").unlink()
    with pytest.raises(UserError, match=r"baselines/layer_9\.csv: no such file; `dvc repro baselines@9` writes it"):
        work()


def test_comparing_tables_loads_no_torch(root):
    script = "import sys; from stages.compare import work; work(); sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, env=environment)


def test_dvc_shows_the_metrics_as_a_table_of_160_columns_and_what_changed(root):
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(root),
        "GIT_CONFIG_GLOBAL": str(root / "gitconfig"),
    }

    def run(*command):
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    work()
    (root / "gitconfig").write_text("[user]\nname = t\nemail = t@example.org\n")
    (root / "dvc.yaml").write_text("metrics: [metrics]\n")
    run("git", "init", "-q")
    run("dvc", "init", "-q")
    run("git", "add", "metrics", "dvc.yaml", ".dvc")
    run("git", "commit", "-qm", "a run")
    header, *rows = run("dvc", "metrics", "show")
    assert len(header.split()) == 13
    assert [row.split()[0] for row in rows] == sorted(f"metrics/{name}.json" for name in NAMES)
    assert max(map(len, (header, *rows))) <= 160
    write(root, result("topk", 9, 0, absorption=0.25, dead=0.0061))
    work()
    changes = [line.split() for line in run("dvc", "metrics", "diff")[1:]]
    assert changes == [["metrics/topk-9-0.json", "absorption", "0.05", "0.25", "0.2"]]
