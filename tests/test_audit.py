"""The check of licences finds what it must (``make check`` runs it on the installed packages)."""

import re
import subprocess
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires

import audit
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.mark.parametrize(
    ("licence", "fine"),
    [
        ("MIT", True),
        ("mit", True),
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND (Apache-2.0 OR GPL-2.0-only)", True),
        ("ISC License (ISCL)", True),
        ("Apache Software License; BSD License", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("UNKNOWN", False),
        ("Some Limited Licence", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_by_name(licence: str, fine: bool) -> None:
    allowed = ["MIT", "Apache-2.0", "ISC License (ISCL)", "Apache Software License"]
    assert (audit.bad_licences([{"Name": "p", "License": licence}], allowed, {}) == []) == fine
    assert audit.bad_licences([{"Name": "p", "License": licence}], allowed, {"p": "a reason"}) == []


@pytest.mark.parametrize(
    ("status", "said", "reported"),
    [
        (0, "", False),
        (1, "Found 1 known vulnerability", True),
        (1, "Max retries exceeded with url", False),
    ],
)
def test_a_vulnerability_fails_and_a_service_out_of_reach_does_not(
    monkeypatch: pytest.MonkeyPatch, status: int, said: str, reported: bool
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], status, said, said))
    assert (audit.vulnerabilities() is not None) == reported


def needed(requirements: Iterable[str]) -> set[str]:
    """The names of ``requirements`` and of all that they ask for here, as far as it is installed."""
    names: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        asked = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not asked or (str(requirement), extra) in seen:
            continue
        seen.add((str(requirement), extra))
        names.add(canonicalize_name(requirement.name))
        try:
            further = requires(requirement.name) or []
        except PackageNotFoundError:  # of another platform
            continue
        waiting += [(Requirement(text), extra) for text in further for extra in ("", *requirement.extras)]
    return names


def test_who_only_runs_installs_nothing_that_only_tests_need() -> None:
    project = tomllib.loads((audit.ROOT / "pyproject.toml").read_text())["project"]
    of_running, of_testing = (
        {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)[=>]=", (audit.ROOT / lock).read_text(), re.M)}
        for lock in audit.LOCKS
    )
    assert not of_running & of_testing
    run = needed(project["dependencies"])
    assert of_running <= run
    assert not of_testing & run
    assert {canonicalize_name(Requirement(text).name) for text in project["dependencies"]} <= of_running
    assert of_testing <= needed(project["optional-dependencies"]["dev"])
