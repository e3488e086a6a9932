"""``python -m tests.audit``: known vulnerabilities of the pinned packages, licences of the installed."""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-test.lock")
"""What running needs, and what testing needs besides."""
UNREACHABLE = re.compile(r"Could not connect|ConnectionError|ConnectTimeout|Max retries|ServiceError|ProxyError")


def vulnerabilities() -> str | None:
    """What the OSV service knows of the versions in the two locks; None where it knows nothing."""
    lines = [line for name in LOCKS for line in (ROOT / name).read_text().splitlines()]
    pinned = [line for line in lines if re.match(r"[\w.-]+==", line)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pinned))
        file.flush()
        command = ["pip-audit", "--vulnerability-service", "osv", "--no-deps", "--disable-pip", "--timeout", "5"]
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--requirement", file.name], capture_output=True, text=True
        )
    if done.returncode and UNREACHABLE.search(done.stderr):
        print("pip-audit: the service of known vulnerabilities cannot be reached; not checked")
        return None
    if done.returncode:
        return done.stdout + done.stderr
    print(f"pip-audit: no known vulnerability in {len(pinned)} packages")
    return None


def bad_licences(packages: list[dict[str, str]], allowed: list[str], exceptions: dict[str, str]) -> list[str]:
    """A line for each package that no allowed licence covers; ``A OR B`` needs one of them, ``A AND B`` both."""
    known = {name.lower() for name in allowed}

    def covered(licence: str) -> bool:
        parts = [[name.strip(" ()").lower() for name in re.split(" OR |; ", part)] for part in licence.split(" AND ")]
        return licence.lower() in known or all(any(name in known for name in part) for part in parts)

    return [
        f"{package['Name']}: {' '.join(package['License'].split())[:80]}"
        for package in packages
        if package["Name"] not in exceptions and not covered(package["License"])
    ]


def licences() -> str | None:
    """The installed packages without an allowed licence."""
    found = subprocess.run(
        ["pip-licenses", "--format=json", "--from=mixed"], capture_output=True, text=True, check=True
    )
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["licences"]
    packages = json.loads(found.stdout)
    bad = bad_licences(packages, settings["allowed"], settings["exceptions"])
    if bad:
        return "licences that pyproject.toml ([tool.licences]) does not allow:\n" + "\n".join(bad)
    print(f"licences: {len(packages)} packages, all allowed")
    return None


if __name__ == "__main__":
    sys.exit("\n".join(filter(None, (vulnerabilities(), licences()))) or None)
