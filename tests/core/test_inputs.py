"""Parameters name no file of this machine but what lies in inputs/."""

from pathlib import Path

import pytest

from transcoders.core.errors import UserError
from transcoders.core.inputs import checked_input, is_local


@pytest.mark.parametrize(
    "name",
    [
        "file:///elsewhere/model",
        "local:///elsewhere/model",
        "file://inputs/model/mine",
        "git:///elsewhere/repository",
        "simplecache::file:///elsewhere/model",
        "zip://weights::/elsewhere/model.zip",
        "/elsewhere/model",
        "./model",
        "~/model",
        "elsewhere",
    ],
)
def test_no_way_of_writing_a_path_passes_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    assert is_local(name)
    with pytest.raises(UserError, match=r"^model\.name: .* is outside inputs/model/, .*; copy it there") as error:
        checked_input("model.name", name, "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["s3://bucket/run", "https://host/run", "org/model", "org/repo:folder/deeper"])
def test_places_elsewhere_are_not_taken_for_paths(name: str) -> None:
    assert not is_local(name)


def test_what_lies_in_inputs_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inputs/model/mine").mkdir(parents=True)
    assert checked_input("model.name", "inputs/model/mine", "model") == Path("inputs/model/mine")
