from pathlib import Path

from ruamel.yaml import YAML

from stages.dependencies import complete, imported_files

PIPELINE = Path(__file__).parents[2] / "dvc.yaml"


def test_dvc_yaml_lists_exactly_the_code_that_each_stage_imports(monkeypatch):
    monkeypatch.chdir(PIPELINE.parent)
    written = YAML(typ="safe").load(PIPELINE)
    derived = YAML(typ="safe").load(PIPELINE)
    complete(derived)
    assert written == derived, "run `python -m stages.dependencies`"


def test_an_edit_to_plotting_code_never_retrains(monkeypatch):
    monkeypatch.chdir(PIPELINE.parent)
    train = imported_files(Path("stages/train.py"))
    assert Path("transcoders/kernels/cpu.py") in train
    assert not train & {Path("stages/plot.py"), Path("stages/figures.py"), Path("transcoders/evaluation/loss.py")}


def test_imports_inside_functions_and_of_packages_are_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("stages/a.py", "stages/b.py", "transcoders/deep/c.py", "transcoders/deep/__init__.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("stages/a.py").write_text("import os\ndef f():\n    from transcoders.deep import c\n")
    Path("transcoders/deep/c.py").write_text("import stages.b\n")
    found = {str(path) for path in imported_files(Path("stages/a.py"))}
    assert found == {"stages/a.py", "stages/b.py", "transcoders/deep/c.py", "transcoders/deep/__init__.py"}
