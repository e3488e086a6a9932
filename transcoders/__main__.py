"""``python -m transcoders export RUN --to saelens|circuit-tracer|sparsify|hub [--out DIR]``."""

import argparse
import logging
import sys
from pathlib import Path

from transcoders.core.errors import UserError, line_on_files
from transcoders.core.files import read_json
from transcoders.core.places import name_of, place, redacted, sizes
from transcoders.formats.export import README, TARGETS, Trained, export, layers_of, samples_of
from transcoders.formats.hub import upload
from transcoders.formats.read import load

log = logging.getLogger("mtxplt")


def main() -> None:
    """Parse the command line, run it, and turn what the user can mend into one line."""
    parser = argparse.ArgumentParser(prog="python -m transcoders", description="Sparse transcoders in other tools.")
    command = parser.add_subparsers(required=True).add_parser("export", help="write runs for another tool")
    command.add_argument("runs", nargs="+", metavar="RUN", help="a folder or URL, or the name of a run in models/")
    command.add_argument("--to", required=True, choices=TARGETS)
    command.add_argument("--out", type=place, help="folder or URL to write (default: export/<target>/<run>)")
    command.add_argument("--repo", help="with --to hub: [user/]name of the repository (default: the run's name)")
    command.add_argument("--data", type=Path, default=Path("data"), help="holds activations/, split.parquet, evaluate/")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "aiobotocore", "botocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        run(parser.parse_args())
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        line = line_on_files(error)
        if line is None:
            raise
        sys.exit(f"error: {line}")


def run(arguments: argparse.Namespace) -> None:
    """Export as the parsed command line says, and upload with ``--to hub``."""
    folders = [place(run) if "://" in run or Path(run).is_dir() else Path("models") / run for run in arguments.runs]
    names = [name_of(folder) for folder in folders]
    out = arguments.out or Path("export") / arguments.to / "+".join(names[:1] + names[-1:] * (len(names) > 1))
    said = out if isinstance(out, Path) else redacted(out)
    if arguments.to == "hub" and not isinstance(out, Path):
        raise UserError(f"--out {said}: what goes to the Hub is written here first; name a local folder")
    there = sizes(out)
    if there and README not in there:
        raise UserError(f"--out {said}: holds something that is no export; name a new folder")
    runs, layers = [], layers_of(arguments.data / "model")
    for folder, name in zip(folders, names, strict=True):
        model, file = load(folder), arguments.data / "evaluate" / name / "metrics.json"
        metrics = read_json(file, f"run `dvc repro evaluate@{name}`") if file.is_file() else None
        runs.append(Trained(name, model, samples_of(arguments.data, model), metrics, layers))
    export(runs, arguments.to, out)
    log.info("wrote %s", said)
    if arguments.to == "hub":
        log.info("uploaded: %s", upload(out, arguments.repo or out.name))


if __name__ == "__main__":
    main()
