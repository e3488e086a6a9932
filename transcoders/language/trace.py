"""Which modules make one tensor of another, as seen in a forward pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PRECISION = 1e-5
"""Of a constant that a block multiplies with, relative."""


class Call(NamedTuple):
    """Hold what one module was given and what it returned."""

    name: str
    inputs: list[Tensor]
    output: Tensor


class Path(NamedTuple):
    """Name modules, each of which reads the output of the one before, and what the last one's is multiplied with."""

    modules: tuple[str, ...]
    scale: float


def first_tensor(output: Any) -> Any:
    """Return what a module passes on: its output, or the first part of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def hugging_face_modules(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield ``module``, whose name is ``name``, and what is in it, by the names that Hugging Face's class has for them.

    TransformerLens puts modules of its own around them; both yield under the same name.
    """
    yield name, module
    original = getattr(module, "original_component", None)
    if original is not None:
        yield from hugging_face_modules(original, name)
        return
    for child_name, child in module.named_children():
        yield from hugging_face_modules(child, f"{name}.{child_name}")


@contextmanager
def traced(modules: Iterator[tuple[str, nn.Module]]) -> Iterator[list[Call]]:
    """Yield a list to which every call of ``modules`` is added while this lasts."""
    calls: list[Call] = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            passed_on = first_tensor(output)
            if isinstance(passed_on, Tensor):
                inputs = [value for value in (*args, *options.values()) if isinstance(value, Tensor)]
                calls.append(Call(name, inputs, passed_on))

        return hook

    with ExitStack() as stack:
        for name, module in modules:
            stack.callback(module.register_forward_hook(record(name), with_kwargs=True).remove)
        yield calls


def find_path(calls: list[Call], x: Tensor, y: Tensor) -> Path | None:
    """Return the outermost modules that make ``y`` of ``x`` alone, or None if none do.

    A module with further tensors among its inputs is no part of a path: what it returns is no function of one.
    """
    single = [call for call in calls if len(call.inputs) == 1]
    paths: list[tuple[Call, ...]] = [()]
    seen: set[str] = set()
    for path in paths:  # grows: breadth first, so that the fewest modules are found
        value = path[-1].output if path else x
        readers = [call for call in single if call.name not in seen and same(call.inputs[0], value)]
        for call in sorted(readers, key=lambda call: call.name.count(".")):
            scale = ratio(call.output, y)
            if scale is not None:
                return Path(tuple(part.name for part in (*path, call)), scale)
            seen.add(call.name)
            paths.append((*path, call))
    return None


def source_of(calls: list[Call], value: Tensor) -> str | None:
    """Return the outermost module whose output is ``value``, or None if it is no module's."""
    names = [call.name for call in calls if same(call.output, value)]
    return min(names, key=lambda name: name.count("."), default=None)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, in whatever shape."""
    return a.numel() == b.numel() and torch.equal(a.reshape(-1), b.reshape(-1))


def ratio(a: Tensor, b: Tensor) -> float | None:
    """Return the constant that makes ``b`` of ``a``, exactly 1 where they are equal; None if there is none."""
    if same(a, b):
        return 1.0
    if a.numel() != b.numel():
        return None
    first, second = a.reshape(-1).double(), b.reshape(-1).double()
    scale = float(first @ second / (first @ first))
    error = (second - scale * first).norm() / second.norm()
    return scale if scale != 0 and float(error) < PRECISION else None
