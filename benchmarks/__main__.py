"""`python -m benchmarks`: measure and write the tables of docs/benchmarks.md (`make bench`)."""

import argparse
import logging
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks import step
from benchmarks.contenders import Size

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEADERS = {
    "peers": (
        "d, F, k, B | encoder matmul (ms) | our step (ms) | matmul / step"
        " | sparsify / ours | sparsify with fused Adam / ours | dense autograd / ours"
    ),
    "options": (
        "d, F, k, B | nested, 5 groups | AuxK, 5 % dead | the same on 1/4 of the tokens"
        " | batchtopk | bucketed | groupmax"
    ),
    "memory": "d, F, k, B | gradients | one [B, F] | ours | sparsify | dense autograd",
    "recall": "d, F, k, B | bucketed, 8k buckets | groupmax",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15, help="of interleaved steps (default 15)")
    parser.add_argument("--sizes", type=int, nargs="*", help="which sizes, by number from 0")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file whose tables to replace")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write(run(torch.device(args.device), args.rounds, args.sizes), args.page)


def run(device: torch.device, rounds: int, chosen: list[int] | None) -> dict[str, list[str]]:
    sizes = step.SIZES + (step.CUDA_SIZES if device.type == "cuda" else [])
    rows: dict[str, list[str]] = {table: [] for table in HEADERS}
    for number, size in enumerate(sizes):
        if chosen is None or number in chosen:
            for table, more in step.run(size, _rounds(size, rounds), device).items():
                rows[table] += more
    rows["recall"] = [step.recall(sizes[0], device)]
    rows["machine"] = [_machine(device)]
    return rows


def write(rows: dict[str, list[str]], page: Path) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` on the page."""
    text = page.read_text()
    for name, lines in rows.items():
        header = HEADERS.get(name)
        if header:
            columns = header.count("|") + 1
            lines = [f"| {header} |", "|" + " --- |" * columns, *lines]
        block = f"<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- /{name} -->"
        pattern = f"<!-- {name} -->.*<!-- /{name} -->"
        text, found = re.subn(pattern, block.replace("\\", r"\\"), text, flags=re.DOTALL)
        if not found:
            raise SystemExit(f"{page} has no <!-- {name} --> … <!-- /{name} -->: add them")
    page.write_text(text)


def _rounds(size: Size, rounds: int) -> int:
    """Fewer where a step takes seconds."""
    work = size.batch * size.d * size.d_hidden
    return max(3, min(rounds, rounds * 30_000_000_000 // work))


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.machine()} CPU, {torch.get_num_threads()} threads, float32"
    return f"Measured on: {where}; " + ", ".join(
        f"{name} {_version(name)}" for name in ("torch", "numba", "triton", "eai-sparsify")
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
