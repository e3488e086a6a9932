"""``python -m tests.fuzz [--seconds N] [TARGET …]``: coverage-guided fuzzing of the readers of foreign files."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import atheris  # noqa: E402 — it and the targets import the tests' helpers by name


def fuzz(name: str, seconds: int) -> None:
    """Fuzz one target; does not return."""
    with atheris.instrument_imports(include=["transcoders", "stages", "zipfile", "json", "ruamel"]):
        import targets

    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    (folder / "files").mkdir()
    with targets.opened(name, folder / "files") as (valid, accepted):
        (corpus / "valid").write_bytes(valid)
        for file in sorted((targets.CORPUS / name).glob("*")):
            (corpus / file.name).write_bytes(file.read_bytes())

        def one(content: bytes) -> None:
            accepted(content)

        limits = [f"-max_total_time={seconds}", "-rss_limit_mb=2048", "-timeout=20", "-max_len=20000"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix=fuzz-{name}-", "-verbosity=0", str(corpus)], one)
        atheris.Fuzz()


def main() -> None:
    """Give every target its share of the seconds, in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="in all")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        fuzz(arguments.targets[0], arguments.seconds)
    import targets

    names = arguments.targets or list(targets.TARGETS)
    share, failed = max(1, arguments.seconds // len(names)), []
    for name in names:
        command = [sys.executable, "-m", "tests.fuzz", "--here", "--seconds", str(share), name]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            print(done.stdout[-5000:])
            failed.append(name)
    if failed:
        sys.exit(f"{', '.join(failed)}: see above; the inputs are in fuzz-<target>-crash-*; {len(names)} targets")
    print(f"{len(names)} targets, {share} s each: nothing but lines for the user")


if __name__ == "__main__":
    main()
