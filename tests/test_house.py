"""The house: what dvc.yaml says of a stage is what its script does, and rooms stay small enough to live in."""

import ast
import re
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

from stages.common.code import code_deps, code_of, files_of
from stages.common.params import StageParams

ROOT = Path(__file__).parents[1]
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
DECIDE_NO_RESULT = {"distributed", "checkpoints"}


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("stages", "transcoders", cache_dir=None)


def module_of(stage: str) -> str:
    return STAGES[stage]["cmd"].split()[2]


def room_of(module: str) -> str:
    """The dep of dvc.yaml that holds a module: a script, or one of the folders below stages/ and transcoders/."""
    parts = module.split(".")
    folder = "/".join(parts[:2])
    return folder if (ROOT / folder).is_dir() else f"{folder}.py"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_rooms_that_its_script_imports_and_no_other(stage, imports):
    script = module_of(stage)
    modules = {script} | imports.find_upstream_modules(script)
    assert {room_of(module) for module in modules if "." in module} == set(code_deps(stage, ROOT))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_the_parameters_that_its_script_reads(stage, monkeypatch):
    monkeypatch.chdir(ROOT)
    params = import_module(module_of(stage)).Params
    assert issubclass(params, StageParams)
    read = {key for name, key in params.keys(variant="${item.variant}").items() if name not in DECIDE_NO_RESULT}
    assert read == set(STAGES[stage]["params"])


def test_editing_a_figure_changes_the_code_of_what_draws_alone(tmp_path):
    copied = tmp_path / "house"
    for file in [Path("dvc.yaml"), *files_of(["stages", "transcoders"], ROOT)]:
        (copied / file).parent.mkdir(parents=True, exist_ok=True)
        (copied / file).write_bytes((ROOT / file).read_bytes())
    before = {stage: code_of(stage, copied) for stage in STAGES}
    with (copied / "transcoders/figures/runs.py").open("a") as file:
        file.write("# an edit\n")
    drawing = {"plot", "circuits", "interventions", "verdicts", "clt_compare"}
    assert {stage for stage in STAGES if code_of(stage, copied) != before[stage]} == drawing
    (copied / "transcoders/kernels/__pycache__").mkdir()
    (copied / "transcoders/kernels/__pycache__/new.pyc").write_bytes(b"compiled")
    assert code_of("train", copied) == before["train"]
    kernels = sorted((copied / "transcoders/kernels").rglob("*.py"))
    assert len(kernels) > 10
    for kernel in kernels:  # also those that are imported late
        kernel.write_text(kernel.read_text() + "# an edit\n")
        assert code_of("train", copied) != before["train"]
        kernel.write_text(kernel.read_text().removesuffix("# an edit\n"))


@pytest.mark.parametrize(
    ("stage", "dep"),
    [
        ("model", "inputs/model"),
        ("collect", "inputs/text"),
        ("official", "inputs/transcoders"),
        ("circuits", "inputs/prompts"),
        ("circuits", "data/features"),
    ],
)
def test_what_decides_a_result_is_a_dep(stage, dep):
    assert dep in STAGES[stage]["deps"]
    assert dep.startswith("data/") or (ROOT / dep).is_dir()


def test_locks_of_runs_are_no_part_of_what_stages_depend_on():
    ignored = subprocess.run(
        ["dvc", "check-ignore", "models/.topk-9-0.lock"], cwd=ROOT, capture_output=True, check=False
    )
    assert ignored.returncode == 0, ignored.stderr


def test_a_page_is_made_anew_when_its_script_or_style_changes():
    files = {str(path) for path in files_of(code_deps("features", ROOT), ROOT)}
    assert {f"transcoders/features/page/{name}" for name in ("page.js", "page.css", "index.html")} <= files


@pytest.mark.parametrize("file", sorted([*ROOT.glob("stages/**/*.py"), *ROOT.glob("transcoders/**/*.py")]), ids=str)
def test_no_function_is_over_60_lines_and_no_class_over_200(file):
    for node in ast.walk(ast.parse(file.read_text())):
        limit = {ast.FunctionDef: 60, ast.AsyncFunctionDef: 60, ast.ClassDef: 200}.get(type(node))
        if limit:
            assert node.end_lineno - node.lineno < limit, node.name


def test_scripts_and_the_pipeline_can_be_read_at_one_sitting():
    scripts = {file: len(file.read_text().splitlines()) for file in ROOT.glob("stages/**/*.py")}
    assert max(scripts.values()) <= 130, scripts
    assert sum(scripts.values()) <= 70 * len(scripts), scripts
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 30 * len(STAGES)
    code = [file.read_text() for file in [*scripts, *ROOT.glob("transcoders/**/*.py")]]
    assert not [text for text in code if re.search(r"#\s*fmt: (skip|off)", text)]


def test_the_laws_of_the_house_hold():
    done = subprocess.run(["lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_stage_is_held_to_the_laws():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    stages = {f"stages.{path.stem}" for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__"}
    for contract in contracts[2:]:
        assert set(contract.get("modules") or contract["forbidden_modules"]) == stages, contract["name"]


def test_no_two_files_of_tests_have_one_name():
    """Pytest imports test files by their base name where their folder is no package."""
    files = (ROOT / "tests").rglob("test_*.py")
    names = [path.name for path in files if not path.with_name("__init__.py").exists()]
    assert sorted(set(names)) == sorted(names)
