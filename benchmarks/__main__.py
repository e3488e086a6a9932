"""`python -m benchmarks`: measure, and write tables of the pages in docs/ (`make bench`)."""

import argparse
import logging
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks import (
    chain,
    collect,
    crosslayer,
    hedging,
    quality,
    shuffle,
    step,
    stores,
    throughput,
    word_categories,
    world,
)
from benchmarks.contenders import Size

PAGES = Path(__file__).parent.parent / "docs"
HEADERS = {
    "peers": (
        "d, F, k, B | encoder matmul (ms) | our step (ms) | matmul / step"
        " | sparsify / ours | sparsify with fused Adam / ours | dense autograd / ours"
    ),
    "options": (
        "d, F, k, B | nested, 5 groups | AuxK, 5 % dead | the same on 1/4 of the tokens | batchtopk | groupmax"
    ),
    "memory": "d, F, k, B | gradients | one [B, F] | ours | sparsify | dense autograd",
    "quality": "way | FVU, seed 0 | seed 1 | seed 2 | mean | dead",
    "shuffle": "tokens in the buffer | same-document pairs in a batch, ideal shuffle = 1 | tokens/s",
    "training": "d, F, k, B | topk (tokens/s, waiting for data) | matryoshka | plt",
    "stores": (
        "collect.dtype, codec, outputs | bytes per token | of float16 | write (tokens/s) | write (MB/s)"
        " | disk alone (MB/s) | read (tokens/s) | read (MB/s) | disk alone (MB/s) | FVU"
    ),
    "collect": "contexts, length | ours (tokens/s) | plain modules (tokens/s) | ours / plain",
    "crosslayer": (
        "layers · d, F, k, B | across layers (ms) | 18 single steps (ms) | dense autograd (ms)"
        " | across / single | dense / across"
    ),
    "hedging": "the second half trains | change of an old row | its share in the span of the new rows | beyond chance",
    "letters": "layer | F1 on x | F1 on y | on y, letters dealt anew",
    "hypernyms": "layer | F1 on x | F1 on y | on y, hypernyms dealt anew",
    "chain": "way | NMSE | skipped hops | path length (in truth 4)",
    "world": "score | untrained | topk | " + " | ".join(f"{way} − topk" for way in world.WAYS[1:]),
}
STEP_TABLES = ("peers", "options", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15, help="of interleaved steps (default 15)")
    parser.add_argument("--sizes", type=int, nargs="*", help="which sizes, by number from 0")
    parser.add_argument("--tables", nargs="*", choices=HEADERS, help="which tables; the others stay as they are")
    parser.add_argument("--data", type=Path, default=Path("data"), help="what the pipeline collected")
    parser.add_argument("--tokens", type=int, default=200_000, help="of it, for quality, shuffle and hedging")
    parser.add_argument("--world-tokens", type=int, default=2_000_000, help="for world, each seen once")
    parser.add_argument("--epochs", type=int, default=1, help="for quality")
    parser.add_argument("--pages", type=Path, default=PAGES, help="the folder of the pages whose tables to replace")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write(run(torch.device(args.device), args), args.pages)


def run(device: torch.device, args: argparse.Namespace) -> dict[str, list[str]]:
    """Return the rows of every table that was asked for and could be measured."""
    wanted = args.tables or list(HEADERS)
    rows: dict[str, list[str]] = {}
    if set(wanted) & set(STEP_TABLES):
        sizes = step.SIZES + (step.CUDA_SIZES if device.type == "cuda" else [])
        chosen = [size for i, size in enumerate(sizes) if args.sizes is None or i in args.sizes]
        results = [step.run(size, _rounds(size, args.rounds), device) for size in chosen]
        rows |= {table: [row for tables in results for row in tables[table]] for table in STEP_TABLES}
        rows["machine"] = [_machine(device)]
    if "crosslayer" in wanted:
        rows["crosslayer"] = crosslayer.run(device)
    if "training" in wanted:
        rows["training"] = throughput.run(device)
    if {"quality", "shuffle", "hedging"} & set(wanted) and (task := quality.open_task(args.data, args.tokens, device)):
        if "shuffle" in wanted:
            rows["shuffle"] = shuffle.run(task)
        if "quality" in wanted:
            rows["quality"] = quality.run(task, args.epochs)
        if "hedging" in wanted:
            rows["hedging"] = hedging.run(task)
    if "collect" in wanted and (args.data / "model").is_dir():
        rows["collect"] = collect.run(args.data / "model", min(args.rounds, 5), device)
    if "stores" in wanted and (args.data / "model").is_dir():
        rows["stores"] = stores.run(args.data / "model", device)
    for task in ("letters", "hypernyms"):
        if task in wanted and (args.data / "model").is_dir():
            rows[task] = word_categories.run(args.data / "model", device, task, args.pages / task)
    if "chain" in wanted:
        rows["chain"] = chain.run()
    if "world" in wanted:
        rows["world"] = world.run(args.world_tokens, args.pages / "world")
    return rows


def write(rows: dict[str, list[str]], pages: Path) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->` on the page of ``pages`` that has these."""
    for name, lines in rows.items():
        block = re.compile(f"<!-- {name} -->.*<!-- /{name} -->", re.DOTALL)
        page = next((page for page in sorted(pages.glob("*.md")) if block.search(page.read_text())), None)
        if page is None:
            raise SystemExit(f"no page in {pages} has <!-- {name} --> … <!-- /{name} -->: add them")
        if header := HEADERS.get(name):
            lines = [f"| {header} |", "|" + " --- |" * (header.count("|") + 1), *lines]
        table = "\n".join([f"<!-- {name} -->", *lines, f"<!-- /{name} -->"])
        page.write_text(block.sub(table.replace("\\", r"\\"), page.read_text()))


def _rounds(size: Size, rounds: int) -> int:
    """Return how many rounds to measure: fewer where a step takes seconds."""
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
