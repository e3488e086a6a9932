"""The check of licences finds what it must (``make check`` runs it on the installed packages)."""

import subprocess

import audit
import pytest


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
