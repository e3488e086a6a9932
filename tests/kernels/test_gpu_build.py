"""The Triton programs as a GPU would run them: compiled to its machine code, within its registers."""

import ast
import inspect
import json
import os
import subprocess
import sys

from transcoders.kernels.cuda import programs as triton_kernels
from transcoders.training.adam import cuda as adam_triton


def test_every_program_compiles_for_hopper_and_stays_in_registers() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels.gpu_build"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    builds = json.loads(done.stdout)
    assert {name for name, *_ in builds} == programs()
    for name, constants, needs in builds:
        assert needs["LOCAL"] == needs["STACK"] == 0, f"{name} {constants} spills: {needs}"
        assert needs["SHARED"] <= 48 << 10, f"{name} {constants}: {needs}"


def programs() -> set[str]:
    """Those that are launched: helpers, which are not, return something, or store for a program."""
    names = set()
    for module in (triton_kernels, adam_triton):
        for node in ast.parse(inspect.getsource(module)).body:
            jitted = isinstance(node, ast.FunctionDef) and any("jit" in ast.dump(d) for d in node.decorator_list)
            if jitted and not any(isinstance(part, ast.Return) for part in ast.walk(node)):
                names.add(node.name)
    return names - {"_emit", "_select_from_row"}
