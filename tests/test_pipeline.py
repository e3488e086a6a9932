"""The whole pipeline, as users drive it: real model, real text, real DVC, small preset."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from stages.preset import apply_preset
from transcoders import Transcoder
from transcoders.training.settings import VariantSettings

ROOT = Path(__file__).parents[1]
ALL = [
    "model",
    "collect",
    "split",
    "clean",
    "words",
    "train",
    "clt_compare",  # of no variant by default
    "evaluate",
    "absorption",
    "features",
    "baselines",
    "floor",
    "probing",
    "classes",
    "pruned",
    "official",
    "compare",
    "plot",
]
OF_A_RUN = ["train", "evaluate", "absorption", "features"]
AFTER_A_VARIANT = [*OF_A_RUN, "pruned", "probing", "classes", "compare", "plot"]


class Pipeline:
    """A checkout of its own with its own caches."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(root.parent / "cache"),
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.org",
        }

    def run(self, *command: str, status: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, timeout=1800, check=False
        )
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def repro(self, *arguments: str) -> list[str]:
        """Run ``dvc repro`` and return the stages that ran (not: restored, skipped), once each, without @…"""
        return ran(self.run("dvc", "repro", *arguments))

    def set(self, **changes: object) -> None:
        yaml = YAML()
        params = yaml.load(self.root / "params.yaml")
        for key, value in changes.items():
            section, name = key.split("__")
            params[section][name] = value
        yaml.dump(params, self.root / "params.yaml")


def ran(output: str) -> list[str]:
    names = re.findall(r"Running stage '([^'@]+)", output)
    return list(dict.fromkeys(names))


@pytest.fixture(scope="module")
def pipeline(gemma, tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline") / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/", "tests/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    made = Pipeline(root)
    apply_preset("smoke", root / "presets", root / "params.yaml")
    made.set(model__name="inputs/model/gemma", runs__variants=["topk", "plt"])
    shutil.copytree(gemma, root / "inputs/model/gemma", copy_function=os.link)
    made.run("git", "init", "-q")
    assert sorted(made.repro()) == sorted(ALL)
    made.run("git", "add", "-A")
    made.run("git", "commit", "-qm", "a run")
    return made


@pytest.fixture
def restored(pipeline):
    """The pipeline, put back to its commit after the test."""
    yield pipeline
    pipeline.run("git", "checkout", "-q", "--", ".")
    pipeline.run("git", "clean", "-fdq", "metrics", "plots")  # a baseline's name holds k
    pipeline.run("dvc", "checkout", "-q", "--force")


def test_a_second_repro_does_nothing(pipeline):
    assert "up to date" in pipeline.run("dvc", "repro")
    assert "up to date" in pipeline.run("dvc", "status")


def test_the_results_are_real(pipeline):
    metrics = json.loads((pipeline.root / "data/evaluate/topk-0-0/metrics.json").read_text())
    assert metrics["l0"] <= 16
    assert metrics["fvu"] < 0.6
    assert metrics["ce_clean"] < 5
    compared = {path.stem: json.loads(path.read_text()) for path in (pipeline.root / "metrics").iterdir()}
    assert compared["mean-0"]["fvu"] == pytest.approx(1, abs=0.2)
    assert compared["topk-0-0"]["fvu"] < compared["untrained-0"]["fvu"]
    checks = pd.read_csv(pipeline.root / "data/compare/checks.csv").set_index(["run", "name"])
    assert checks.loc[("topk-0-0", "loss_decreased"), "passed"]
    history = pd.read_csv(pipeline.root / "models/topk-0-0/history.csv")
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert "topk-0-0" in (pipeline.root / "data/compare/compare.md").read_text()


def test_every_living_latent_is_described_scored_and_shown(pipeline):
    metrics = json.loads((pipeline.root / "data/features/topk-0-0/metrics.json").read_text())
    latents = pd.read_parquet(pipeline.root / "data/features/topk-0-0/latents.parquet")
    contexts = pd.read_parquet(pipeline.root / "data/features/topk-0-0/contexts.parquet")
    assert len(latents) == metrics["living"] > 100
    assert set(contexts["latent"]) <= set(latents["latent"])
    assert latents["description"].str.match("fires on (“|held-out text alone)").all()
    assert metrics["detection_score_low"] > 0.5
    assert (pipeline.root / "data/features/topk-0-0/index.html").is_file()
    nested = pd.read_parquet(pipeline.root / "data/features/plt-0-0/latents.parquet")
    assert nested["group"].max() == 5


def test_prefixes_phases_and_pruned_dictionaries_are_compared(pipeline):
    groups = pd.read_csv(pipeline.root / "data/evaluate/plt-0-0/groups.csv")
    assert groups["stop"].tolist() == [40, 80, 160, 320, 640]
    assert groups["k"].tolist() == list(VariantSettings(prefixes=(0.0625, 0.125, 0.25, 0.5, 1)).ks(16))
    assert groups["fvu"].iloc[-1] < groups["fvu"].iloc[0]
    metrics = json.loads((pipeline.root / "data/evaluate/plt-0-0/metrics.json").read_text())
    assert metrics["prefix_40"]["fvu"] == pytest.approx(groups["fvu"].iloc[0], rel=1e-3)
    cut = pd.read_csv(pipeline.root / "data/pruned/layer_0.csv")
    assert set(cut["name"]) == {"topk-0-0"}
    assert cut["latents"].tolist() == [40, 80, 160, 320]
    table = pd.read_csv(pipeline.root / "data/compare/runs.csv").set_index("name")
    differences = pd.read_csv(pipeline.root / "data/compare/contrasts.csv").set_index(["variant", "against", "metric"])
    difference = differences.loc[("plt", "topk", "fvu")]
    expected = table.loc["plt-0-0", "fvu"] - table.loc["topk-0-0", "fvu"]
    assert difference["difference"] == pytest.approx(expected, abs=1e-4)
    assert difference["low"] <= difference["difference"] <= difference["high"]
    trained = json.loads((pipeline.root / "models/plt-0-0/metrics.json").read_text())
    assert len([key for key in trained if key.startswith("phase_")]) == 5


def test_a_trained_transcoder_loads_and_runs(pipeline):
    model = Transcoder.load(pipeline.root / "models/topk-0-0")
    assert model(torch.randn(3, 640)).shape == (3, 640)
    assert model.config.provenance["hf_hook_in"] == "model.layers.0.pre_feedforward_layernorm.output"
    assert Transcoder.load(pipeline.root / "models/topk-0-0/final").config == model.config


def test_outputs_are_byte_stable(restored):
    before = hashes(restored)
    command = ("dvc", "repro", "--force", "--no-run-cache", "--single-item", "split", "train@topk-0-0", "train@plt-0-0")
    assert ran(restored.run(*command)) == ["split", "train"]
    assert len(before) > 10
    assert hashes(restored) == before


def hashes(pipeline):
    """Of every output."""
    stages = YAML(typ="safe").load(pipeline.root / "dvc.lock")["stages"]
    outs = [out for stage in stages.values() for out in stage["outs"]]
    return {out["path"]: out["md5"] for out in outs}


@pytest.mark.slow  # tests/faults kills every stage, of a smaller model
def test_training_killed_at_random_points_gives_the_same_bytes(restored):
    folder = restored.root / "models/plt-0-0"
    expected = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rng = np.random.default_rng()
    started = time.monotonic()
    start_training(restored, "plt").communicate(timeout=300)
    seconds = time.monotonic() - started
    for moment in rng.uniform(0.4, 1.0, 5):
        process = start_training(restored, "plt")
        time.sleep(moment * seconds)
        process.kill()
        process.communicate()
    _, errors = start_training(restored, "plt").communicate(timeout=300)
    found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == expected, errors


def test_a_parameter_of_a_variant_reruns_its_training_and_what_follows(restored):
    output = restored.run("dvc", "exp", "run", "-S", "+variants.plt.k_share=0.5", "--name", "eight")
    assert sorted(ran(output)) == sorted(AFTER_A_VARIANT)
    assert set(re.findall("Running stage '(.+)@topk", output)) == set()
    assert json.loads((restored.root / "data/evaluate/plt-0-0/metrics.json").read_text())["l0"] <= 8
    assert "k_share" in restored.run("dvc", "params", "diff")
    assert "fvu" in restored.run("dvc", "metrics", "diff")
    page = restored.root / "diff"
    restored.run("dvc", "plots", "diff", "--out", str(page))
    html = (page / "index.html").read_text()
    assert html.count("vegaEmbed") > 5
    table = restored.run("dvc", "exp", "show", "--csv")
    assert "eight" in table
    assert "k_share" in table


def test_editing_the_parameter_does_the_same_and_results_come_back_from_the_run_cache(restored):
    variant = YAML().load(restored.root / "params.yaml")["variants"]["plt"]
    restored.set(variants__plt={**variant, "k_share": 0.5})
    output = restored.run("dvc", "repro")
    cached = set(re.findall(r"Stage '([^'@]+)[^']*' is cached", output))
    assert ran(output) == ["compare", "plot"], "their folders are in git, not in the cache"
    assert cached == set(AFTER_A_VARIANT) - {"plot", "compare"}
    assert json.loads((restored.root / "data/evaluate/plt-0-0/metrics.json").read_text())["l0"] <= 8


def test_a_mistyped_experiment_key_is_refused(restored):
    output = restored.run("dvc", "exp", "run", "-S", "train.kk=12", status=255)
    assert "kk" in output


def test_editing_what_draws_reruns_that_alone(restored):
    for file, stages in {"stages/plot.py": {"plot"}, "transcoders/figures/style.py": {"plot", "clt_compare"}}.items():
        with (restored.root / file).open("a") as opened:
            opened.write("# an edit\n")
        assert set(restored.repro()) == stages


def test_another_layer_is_collected_alone_and_retrains_nothing(restored):
    restored.set(collect__layers=[0, 1])
    output = restored.run("dvc", "repro")
    assert re.findall(r"layer (\d): \d of \d shards are missing", output) == ["1"]
    assert set(ran(output)) == {"collect", "official", "clt_compare"}, "the latter read the folder of all stores"


def test_others_transcoders_stand_beside_ours_under_the_same_evaluation(restored):
    theirs = "inputs/transcoders/theirs"
    restored.run(sys.executable, "-m", "transcoders", "export", "topk-0-0", "--to", "sparsify", "--out", theirs)
    unreachable = "google/gemma-scope-2-270m-pt:transcoder_all/layer_0_width_16k_l0_small"
    restored.set(compare__official=[f"{theirs}@0", unreachable])
    output = restored.run("dvc", "repro")
    assert set(ran(output)) == {"official", "compare", "plot"}
    [line] = [line for line in output.splitlines() if line.startswith("left out: ")]
    assert line.startswith(f"left out: {unreachable}: the Hugging Face Hub cannot be reached")
    table = pd.read_csv(restored.root / "data/compare/runs.csv").set_index("name")
    ours, official = table.loc["topk-0-0"], table.loc[theirs]
    assert official["kind"] == "official"
    same = ["tokens", "l0", "fvu", "nmse", "cosine", "dead_fraction", "mean_max_cosine", "ce_replaced", "kl"]
    for metric in [*same, "mean_absorption", "splitting"]:
        assert official[metric] == pytest.approx(ours[metric], rel=2e-3), metric
    assert "official" in (restored.root / "plots/data/comparison.csv").read_text()
    restored.set(compare__official=[f"{theirs}@7"])
    assert "is of layer 7, and collect.layers has [0]" in restored.run(
        sys.executable, "-m", "stages.official", status=1
    )


def test_what_users_look_at(pipeline):
    assert "fvu" in pipeline.run("dvc", "metrics", "show")
    assert "train@topk-0-0" in pipeline.run("dvc", "dag", "--md")
    page = pipeline.root.parent / "page"
    pipeline.run("dvc", "plots", "show", "--out", str(page))
    html = (page / "index.html").read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=\"?https?:", html)
    for plot in YAML(typ="safe").load(pipeline.root / "dvc.yaml")["plots"]:
        assert isinstance(plot, str) or next(iter(plot.values()))["title"] in html


def start_training(pipeline, variant="topk"):
    command = [sys.executable, "-m", "stages.train", variant, "0", "0"]
    return subprocess.Popen(
        command,
        cwd=pipeline.root,
        env=pipeline.env,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored under nohup
    )


def test_ctrl_c_keeps_nothing_unfinished_and_a_rerun_continues(restored):
    restored.set(train__epochs=12)
    before = (restored.root / "models/topk-0-0/transcoder.safetensors").read_bytes()
    process = start_training(restored)
    checkpoints = restored.root.parent / "cache/mtxplt/checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("[!.]*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert (restored.root / "models/topk-0-0/transcoder.safetensors").read_bytes() == before
    _, errors = start_training(restored).communicate(timeout=300)
    assert "continuing at step" in errors
    assert (restored.root / "models/topk-0-0/transcoder.safetensors").read_bytes() != before


def test_a_mistake_in_the_parameters_stops_the_stage_with_one_line(restored):
    restored.set(train__k=100_000)
    output = restored.run(sys.executable, "-m", "stages.train", "topk", "0", "0", status=1)
    assert output.splitlines()[-1] == "error: train.k: 100000 is more than train.d_hidden 1x = 640 latents"
    restored.set(train__kk=3)
    for command in (("stages.train", "topk", "0", "0"), ("stages.preset", "check")):
        output = restored.run(sys.executable, "-m", *command, status=1)
        assert output.startswith("error: params.yaml: train.kk: unknown parameter"), output


@pytest.mark.slow
def test_every_stage_has_help(pipeline):
    for stage in (*ALL, "preset"):
        assert "usage" in pipeline.run(sys.executable, "-m", f"stages.{stage}", "--help")
