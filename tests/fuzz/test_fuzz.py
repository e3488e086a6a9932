"""Whatever stands in a file of others: one line for the user, no code run, no memory for a header's lies."""

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from targets import CORPUS, TARGETS, opened

from transcoders import load
from transcoders.core.errors import UserError
from transcoders.training.checkpoint import CheckpointFile
from transcoders.training.sharing import HERE

PIECES = (
    b"",
    b"\0",
    b"\xff",
    b"-1",
    b"0",
    b"99999999999999999999",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"true",
    b"!!python/object/apply:os.system ['true']",
    b"&a [*a]",
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80",
    b"[" * 1000,
    b"{a: " * 500,
    struct.pack("<Q", 2**63),
    struct.pack("<Q", 2**40),
    b"2001-99-99",
    b"\r",
    b"\n",
)


VALUES = (None, True, -1, 0, 5, 10**30, 1.5, float("nan"), "", "x", "layers.99.", [], [1], [[]], {}, {"a": [1]})


def changed(valid: bytes, rng: np.random.Generator) -> bytes:
    """``valid`` with a few values or bytes changed."""
    header = valid[8 : 8 + struct.unpack("<Q", valid[:8])[0]] if valid[8:9] == b"{" else valid
    if rng.random() < 0.5 and header[:1] == b"{" and b"\n{" not in header:
        content = other_values(json.loads(header), rng)
        return content if header is valid else struct.pack("<Q", len(content)) + content + valid[8 + len(header) :]
    return other_bytes(valid, rng)


def other_values(content: object, rng: np.random.Generator) -> bytes:
    """JSON with a value somewhere that does not belong there, or without one that does."""
    node = content
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[rng.integers(len(keys))]
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
            break
        node = node[key]
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = VALUES[rng.integers(len(VALUES))]
    return json.dumps(content).encode()


def other_bytes(valid: bytes, rng: np.random.Generator) -> bytes:
    """With a few bytes flipped, cut out, doubled or replaced."""
    content = valid
    for _ in range(int(rng.integers(1, 4))):
        start, stop = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        how = rng.integers(5)
        stop = min(stop, start + 12) if how < 3 else stop
        if how == 0:
            content = content[:start] + rng.bytes(stop - start) + content[stop:]
        elif how < 3:
            content = content[:start] + PIECES[rng.integers(len(PIECES))] + content[stop:]
        elif how == 3:
            content = content[:start] + content[stop:]
        else:
            content = content[:stop] + content[start:]
    return content


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_raise_nothing_but_a_line_for_the_user(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with opened(name, tmp_path) as (valid, accepted):
        assert accepted(valid)
        for file in sorted((CORPUS / name).glob("*")):
            accepted(file.read_bytes())
        answers = [accepted(changed(valid, rng)) for _ in range(80)]
    assert not all(answers) or name == "text_txt"


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, (str(self.trace),))


def bombs(trace: Path) -> dict[str, bytes]:
    """Files that run code in whoever trusts them."""
    torch_file, numpy_file, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"W_enc": Bomb(trace)}, torch_file)
    np.save(numpy_file, np.array([Bomb(trace)], dtype=object))
    with zipfile.ZipFile(archive, "w") as inner:
        inner.writestr("W_enc.npy", numpy_file.getvalue())
    return {
        "pickle": pickle.dumps(Bomb(trace)),
        "torch": torch_file.getvalue(),
        "npz": archive.getvalue(),
        "yaml": f"model_name: !!python/object/apply:os.mkdir ['{trace}']\n".encode(),
    }


TRUSTING = {
    "pickle": pickle.loads,
    "torch": lambda content: torch.load(io.BytesIO(content), weights_only=False),
    "npz": lambda content: np.load(io.BytesIO(content), allow_pickle=True)["W_enc"],
    "yaml": lambda content: yaml.unsafe_load(content),
}


@pytest.mark.parametrize("kind", TRUSTING)
def test_no_code_of_a_file_is_run_whatever_it_is_called(kind: str, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    content = bombs(trace)[kind]
    for name in TARGETS:
        (tmp_path / name).mkdir()
        with opened(name, tmp_path / name) as (_, accepted):
            assert not accepted(content) or name == "text_txt"
    for file in ("ae.pt", "pytorch_model.bin", "a.pkl", "a.ckpt"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(UserError, match=r"pickles.*which could run any code"):
            load(tmp_path / file)
    (tmp_path / "c.safetensors").write_bytes(content)
    assert CheckpointFile(tmp_path / "c.safetensors", HERE).read() is None
    assert not trace.exists()
    TRUSTING[kind](content)
    assert trace.exists(), "the bomb works where it is trusted"


def lying_npz(shape: tuple[int, ...], stored: int = zipfile.ZIP_STORED) -> bytes:
    """A W_enc that is said to be of this shape, with 16 numbers in it."""
    header, archive = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(archive, "w", stored) as inner:
        inner.writestr("W_enc.npy", header.getvalue() + bytes(64))
        for name in ("b_enc", "W_dec", "b_dec", "threshold"):
            inner.writestr(f"{name}.npy", header.getvalue() + bytes(64))
    return archive.getvalue()


def lying_safetensors(shape: tuple[int, ...], *, consistent: bool) -> bytes:
    """Tensors that are said to be of this shape; ``consistent``: at offsets that would fit it."""
    size = 4 * int(np.prod(shape, dtype=object)) if consistent else 64
    names = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": shape, "data_offsets": [i * size, (i + 1) * size]}
            for i, name in enumerate(names)
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(64 * 5)


LAUGHS = "a0: &a0 [lol,lol,lol,lol,lol,lol,lol,lol,lol]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
HUGE = ((2**40, 64), (2**31, 2**31), (2**62,), (-1, 5), (10**30,), (0, 2**40))


def memory(key: str) -> int:
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's memory counters")
@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("gemma_scope_npz", [lying_npz(s, how) for s in HUGE for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]),
        ("gemma_scope_2_weights", [lying_safetensors(s, consistent=c) for s in HUGE for c in (True, False)]),
        ("gemma_scope_2_weights", [struct.pack("<Q", n) + b"{" for n in (2**63, 2**40, 10**8)]),
        (
            "circuit_tracer_config",
            [
                (LAUGHS + f"{key}: *a11\n").encode()
                for key in ("feature_input_hook", "feature_output_hook", "model_name")
            ],
        ),
        ("prompts", [(LAUGHS.replace("a0:", "- x:\n  a0:", 1)).encode(), (LAUGHS + "b: *a11").encode()]),
        ("saelens_config", [b'{"metadata": ' + b'{"a": ' * 400 + b"1" + b"}" * 401, b"[" * 10**6]),
        ("params", [(LAUGHS + "device: *a11\nmodel: {name: *a11}\n").encode()]),
    ],
)
def test_no_memory_is_spent_on_a_lie(name: str, contents: list[bytes], tmp_path: Path) -> None:
    with opened(name, tmp_path) as (valid, accepted):
        accepted(valid)
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        for content in contents:
            assert not accepted(content)
        assert memory("VmHWM") - before < 64 << 20
