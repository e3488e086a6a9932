"""Compile every Triton program to machine code for Hopper GPUs, without one, and print what each needs of it.

A process of its own: where Triton is told to interpret, it compiles nothing.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from transcoders.kernels.cuda import programs as triton_kernels
from transcoders.training.adam import cuda as adam_triton

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    **dict.fromkeys(("products",), "*bf16"),
    **dict.fromkeys(("splits", "indices", "offsets", "order", "rows", "schedule", "starts", "counts"), "*i64"),
    **dict.fromkeys(("d_hidden", "begin", "stop", "k", "first", "k_all", "latents", "tokens", "d", "nnz"), "i32"),
    **dict.fromkeys(("beta1", "beta2", "rate", "correction", "eps"), "fp32"),
    "scratch": "*i32",
    "numel": "i32",
}
FLOATS = "*fp32"
"""All other arguments."""
# d = 2304, k = 64: what `cuda` chooses there
PROGRAMS: list[tuple[Any, dict[str, int], int]] = [
    (triton_kernels.select_topk, {"TILE": 2048, "LANES": 128, "CAP": 256, "CHUNK": 2048}, 4),
    (triton_kernels.keep_largest, {"TILE": 8192}, 8),
    (triton_kernels.count_above, {"TILE": 2048}, 4),
    (triton_kernels.fill_above, {"TILE": 2048}, 4),
    (triton_kernels.nested_sums, {"GROUPS": 1, "RESIDUAL": 0, "STEP": 4, "D": 512}, 4),
    (triton_kernels.nested_sums, {"GROUPS": 5, "RESIDUAL": 1, "STEP": 4, "D": 512}, 4),
    (triton_kernels.reverse_sums, {"GROUPS": 5, "TILE": 1024}, 4),
    (triton_kernels.column_sums, {"DOTS": 0, "STEP": 8, "D": 512}, 4),
    (triton_kernels.column_sums, {"DOTS": 1, "STEP": 8, "D": 512}, 4),
    (adam_triton._adam, {"UNIT_ROWS": 1, "D": 4096}, 8),
    (adam_triton._square_norms, {"UNIT_ROWS": 1, "D": 4096}, 8),
]


def build(program: Any, constants: dict[str, int], warps: int) -> dict[str, int]:
    """Registers per thread, and bytes of stack, local and shared memory."""
    names = program.arg_names
    signature = {name: "constexpr" if name in constants else TYPES.get(name, FLOATS) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(program, signature, {(names.index(name),): value for name, value in constants.items()}, aligned)
    compiled = triton.compile(source, target=HOPPER, options={"num_warps": warps})
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    pairs = (pair.split(":") for pair in done.stdout.split("Function")[1].split() if pair.count(":") == 1)
    return {name: int(value) for name, value in pairs if value.isdigit()} | {"SHARED": compiled.metadata.shared}


if __name__ == "__main__":
    print(
        json.dumps([[program.__name__, constants, build(program, constants, w)] for program, constants, w in PROGRAMS])
    )
