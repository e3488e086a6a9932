"""Running the model over contexts and storing what enters and leaves its MLPs."""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from transcoders.activations import store
from transcoders.collecting import contexts as contexts_module
from transcoders.collecting import text
from transcoders.collecting.contexts import PAD, Contexts, batches
from transcoders.collecting.settings import CollectSettings
from transcoders.core.errors import UserError
from transcoders.core.files import fingerprint, source_hash, write_json
from transcoders.core.places import Place, explain_errors
from transcoders.language import taps
from transcoders.language.taps import Tap

log = logging.getLogger(__name__)


class Activations(NamedTuple):
    """x and y of the kept tokens of one batch, and where each came from."""

    x: Tensor
    y: Tensor
    labels: dict[str, Tensor]
    norms_left_out: int


def layer_fingerprint(settings: CollectSettings, layer: int, contexts: Contexts, weights: str) -> str:
    """What a layer's store depends on; equal fingerprints mean equal stores."""
    from transcoders.collecting import shards  # which imports this module

    relevant = settings.model_dump(exclude={"layers", "url"})
    code = source_hash(sys.modules[__name__], contexts_module, shards, store, taps, text)
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in contexts[:2]]
    return fingerprint(relevant, layer, digests, weights, code)


def forward(bridge: Any, tokens: Tensor, layer_taps: list[Tap]) -> dict[str, Tensor]:
    """Run ``tokens`` [contexts, length] up to the last tapped layer; return the hooked tensors."""
    caught: dict[str, Tensor] = {}

    def catch(value: Tensor, hook: Any) -> None:
        caught[hook.name] = value

    names = {name for tap in layer_taps for name in (tap.hook_in, tap.hook_out)}
    hooks = [(bridge.hook_dict[name].name, catch) for name in names]
    last = max(tap.layer for tap in layer_taps)
    stop = {"stop_at_layer": last + 1} if last + 1 < len(bridge.blocks) else {}
    bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type=None, use_cache=False, **stop)
    return {name: caught[bridge.hook_dict[name].name] for name in names}


def norm_limits(tap: Tap, caught: dict[str, Tensor], labels: dict[str, Tensor], max_norm: float) -> list[float]:
    """The longest x and y to store: ``max_norm`` times the medians of this, the first, batch."""
    norms = [caught[hook][labels["keep"]].norm(dim=1) for hook in (tap.hook_in, tap.hook_out)]
    return [float(n.median()) * max_norm for n in norms]


def kept(tap: Tap, caught: dict[str, Tensor], labels: dict[str, Tensor], limits: list[float] | None) -> Activations:
    """A batch's tokens with their labels, those longer than ``limits`` left out."""
    keep = labels["keep"]
    x, y = caught[tap.hook_in][keep], caught[tap.hook_out][keep]
    labels = {name: values[keep] for name, values in labels.items() if name != "keep"}
    if limits is None:
        return Activations(x, y, labels, 0)
    inside = ~((x.norm(dim=1) > limits[0]) | (y.norm(dim=1) > limits[1]))
    labels = {name: values[inside.to(values.device)] for name, values in labels.items()}
    return Activations(x[inside], y[inside], labels, int((~inside).sum()))


def stored_arrays(rows: Activations, settings: CollectSettings, tap: Tap) -> dict[str, np.ndarray]:
    """What the store holds of ``rows``, and y, by array."""
    where = f"layer {tap.layer}"
    return {
        **store.to_storage("mlp_in", rows.x, settings.dtype, where),
        # What is not stored is here for its statistics, and nothing rounds it.
        **store.to_storage("mlp_out", rows.y, settings.dtype if settings.outputs == "stored" else "float32", where),
        **{name: rows.labels[name].numpy().astype(np.int32) for name in store.LABELS},
    }


def write_rows(root: zarr.Group, start: int, arrays: dict[str, np.ndarray]) -> None:
    """Into the arrays of the store ``root``, from row ``start`` on."""
    for name, values in arrays.items():
        if name in root:
            array = root[name]
            assert isinstance(array, zarr.Array)
            array[start : start + len(values)] = values


def create_store(path: Place, settings: CollectSettings, d_model: int, rows: int) -> None:
    """An empty store of the kind that ``settings`` ask for."""
    store.create(path, d_model, settings.dtype, rows, {}, codec=settings.codec, outputs=settings.outputs)


class LayerWriter:
    """Writes one layer's rows in whole shards and can continue after the last whole one."""

    def __init__(self, path: Place, tap: Tap, settings: CollectSettings, d_model: int, rows: int):
        self.path, self.tap, self.settings = path, tap, settings
        self.d_model, self.capacity = d_model, rows
        self._progress = store.notes_folder(path).with_suffix(".json")
        state: dict[str, Any] = {"rows": 0, "batch": 0, "rows_before": 0, "limits": None, "left_out": 0}
        state["moments"] = {name: [] for name in store.ACTIVATIONS}
        if self._progress.is_file() and store.is_begun(path):
            state = json.loads(self._progress.read_text())
            log.info("layer %d: continuing after %d stored tokens", tap.layer, state["rows"])
        else:
            self._progress.unlink(missing_ok=True)
            create_store(path, settings, d_model, rows)
        self.first_batch: int = state["batch"]
        self._skip: int = state["rows"] - state["rows_before"]
        self._seen: int = state["rows_before"]
        self.limits: list[float] | None = state["limits"]
        self.left_out: int = state["left_out"]
        self.written: int = state["rows"]
        self._moments = {
            name: [Moments(torch.tensor(total, dtype=torch.double), square) for total, square in chunks]
            for name, chunks in state["moments"].items()
        }
        self._pending: dict[str, list[np.ndarray]] = {}
        self._pending_rows = 0
        self._root = store.opened(path)

    def select(self, batch: int, caught: dict[str, Tensor], labels: dict[str, Tensor]) -> Activations:
        """The batch's tokens with their labels, norm outliers left out."""
        if self.limits is None and self.settings.max_norm is not None:
            self.limits = norm_limits(self.tap, caught, labels, self.settings.max_norm)
        return kept(self.tap, caught, labels, self.limits)

    def add(self, batch: int, rows: Activations, pool: ThreadPoolExecutor) -> "Future[None] | None":
        """Queue the rows of ``batch``; returns the write of a shard when one became full."""
        if batch < self.first_batch:
            return None
        arrays = stored_arrays(rows, self.settings, self.tap)
        skip, self._skip = self._skip, 0
        before, left_out_before = self._seen, self.left_out
        self._seen += len(arrays["token"])
        self.left_out += rows.norms_left_out
        for name, values in arrays.items():
            self._pending.setdefault(name, []).append(values[skip:])
        self._pending_rows += len(arrays["token"]) - skip
        if self._pending_rows < store.SHARD_ROWS:
            return None
        joined = {name: np.concatenate(parts) for name, parts in self._pending.items()}
        shard = {name: values[: store.SHARD_ROWS] for name, values in joined.items()}
        self._pending = {name: [values[store.SHARD_ROWS :]] for name, values in joined.items()}
        self._pending_rows -= store.SHARD_ROWS
        start, self.written = self.written, self.written + store.SHARD_ROWS
        progress = {
            "rows": self.written, "batch": batch, "rows_before": before,
            "limits": self.limits, "left_out": left_out_before,
        }  # fmt: skip
        return pool.submit(self._write, start, shard, progress)

    def _write(self, start: int, shard: dict[str, np.ndarray], progress: dict[str, Any] | None) -> None:
        with explain_errors(self.path):
            write_rows(self._root, start, shard)
        for name in store.ACTIVATIONS:
            self._moments[name] = [summed([*self._moments[name], *chunk_moments(name, shard)])]
        if progress is not None:
            moments = {name: [(m.total.tolist(), m.square) for m in chunks] for name, chunks in self._moments.items()}
            write_json(self._progress, {**progress, "moments": moments})

    def close(self, attributes: dict[str, Any]) -> None:
        """Write what is left, the per-array statistics and, last, the mark of completeness."""
        rest = {name: np.concatenate(parts) for name, parts in self._pending.items()}
        if self._pending_rows:
            self._write(self.written, rest, None)
        rows = self.written + self._pending_rows
        for name, found in self._moments.items():
            attributes |= statistics(name, found, rows)
        store.finish(self.path, rows, {**attributes, "left_out": self.left_out})
        self._progress.unlink(missing_ok=True)


class Moments(NamedTuple):
    """Of one chunk of an array, or of several: sums, in double, of its rows and of its squares."""

    total: Float[Tensor, "d"]
    square: float


def chunk_moments(name: str, arrays: dict[str, np.ndarray]) -> list[Moments]:
    """Of array ``name``, chunk by chunk, as it will be read."""
    parts = [part for part in (name, name + store.SCALE) if part in arrays]
    found = []
    for start in range(0, len(arrays[name]), store.CHUNK_ROWS):
        chunk = {part: arrays[part][start : start + store.CHUNK_ROWS] for part in parts}
        exact = store.from_storage(name, chunk).double()
        found.append(Moments(exact.sum(0), float(exact.square().sum())))
    return found


def summed(chunks: Iterable[Moments]) -> Moments:
    """Of all ``chunks``, added in order."""
    return reduce(lambda a, b: Moments(a.total + b.total, a.square + b.square), chunks)


def statistics(name: str, chunks: Iterable[Moments], rows: int) -> dict[str, Any]:
    """The attributes of array ``name``, from its chunks in order."""
    total, square = summed(chunks)
    return {f"{name}_mean": (total / rows).tolist(), f"{name}_mean_square": square / rows}


@torch.inference_mode()
def collect(
    bridge: Any,
    layer_taps: list[Tap],
    contexts: Contexts,
    settings: CollectSettings,
    special_ids: list[int],
    paths: Sequence[Place],
    attributes: list[dict[str, Any]],
) -> None:
    """Write one complete store per tap to ``paths``, continuing what an earlier call began.

    All layers share one forward pass, which stops after the last of them; shards are written by a
    second thread while the model computes.

    Raises:
        UserError: a tap is not an MLP, a value does not fit the dtype, or the disk is too small.
    """
    d_model = int(bridge.cfg.d_model)
    capacity = int((contexts.tokens != PAD).sum()) - len(contexts.tokens)
    device = next(bridge.original_model.parameters()).device
    check_disk(paths, settings, d_model, capacity)
    writers = [LayerWriter(path, tap, settings, d_model, capacity) for path, tap in zip(paths, layer_taps, strict=True)]
    plan = batches(contexts, settings.batch_size)
    first = min(writer.first_batch for writer in writers)
    special = torch.tensor(special_ids, dtype=torch.long)
    bar = tqdm(desc="collect", total=capacity, unit="tok", unit_scale=True)
    bar.update(sum(tokens_of(contexts, rows) for rows in plan[:first]))
    pending: list[Future[None]] = []
    with bar, ThreadPoolExecutor(max_workers=1) as pool:
        for number in range(first, len(plan)):
            labels = batch_labels(contexts, plan[number], special)
            tokens = labels["token"].clamp_min(0).to(device)
            caught = forward(bridge, tokens, layer_taps)
            for writer in writers:
                rows = writer.select(number, caught, dict(labels))
                if number == first:
                    error = taps.check_tap(bridge, writer.tap, rows.x, rows.y)
                    log.info("layer %d: the model's MLP maps x to y (relative error %.1e)", writer.tap.layer, error)
                written = writer.add(number, rows, pool)
                if written is not None:
                    pending.append(written)
            # At most one shard per layer waits to be written; an error in the writer surfaces here.
            while len(pending) > len(writers) or (pending and pending[0].done()):
                pending.pop(0).result()
            bar.update(tokens_of(contexts, plan[number]))
        for future in pending:
            future.result()
        for writer, extra in zip(writers, attributes, strict=True):
            writer.close({**extra, "d_model": d_model})


def tokens_of(contexts: Contexts, rows: np.ndarray) -> int:
    return int((contexts.tokens[rows] != PAD).sum()) - len(rows)


def batch_labels(contexts: Contexts, rows: np.ndarray, special: Tensor) -> dict[str, Tensor]:
    """Per position [contexts, length]: token, document, position, context, and whether to keep it."""
    table = contexts.tokens[rows]
    token = torch.from_numpy(table[:, : int((table != PAD).sum(1).max())]).long()
    shape = token.shape
    return {
        "token": token,
        "document": torch.from_numpy(contexts.document[rows]).long()[:, None].expand(shape),
        "position": torch.arange(shape[1]).expand(shape),
        "context": torch.from_numpy(rows)[:, None].expand(shape),
        "keep": (token != PAD) & ~torch.isin(token, special),
    }


def check_disk(paths: Sequence[Place], settings: CollectSettings, d_model: int, rows: int) -> None:
    """Whether ``paths`` fit, if the codec gains nothing; nobody says so of a URL."""
    if not paths or not isinstance(paths[0], Path):
        return
    folder = paths[0].parent
    needed = len(paths) * rows * store.bytes_per_token(d_model, settings.dtype, settings.outputs)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"collect.tokens: the stores need {needed / 1e9:.2f} GB, but the disk of {folder} has "
            f"{free / 1e9:.2f} GB left; free some, lower collect.tokens, set collect.outputs: recomputed or "
            "collect.dtype: int8, or set XDG_CACHE_HOME"
        )


def publish(path: Path, target: Path) -> bool:
    """Put a finished store at ``target``, hard-linked so that it costs no disk; False if copied."""
    try:
        shutil.copytree(path, target, copy_function=os.link)
        return True
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(path, target)
        return False
