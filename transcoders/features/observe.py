"""One pass over a store: what every latent does, in memory that depends on d_hidden alone."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from transcoders.activations.store import Store
from transcoders.core.errors import UserError
from transcoders.dictionary.transcoder import Transcoder
from transcoders.features.blocks import Block, complete_contexts
from transcoders.features.keep import Admitted, Histograms, Keeper
from transcoders.features.settings import FeatureSettings
from transcoders.features.texts import PAD

POOL = 25
"""Windows kept, for each one that a latent needs, to find some where it is silent."""
USUAL = 150
"""Windows of documents that may be shown, whatever fires in them."""


class Firings(NamedTuple):
    """Hold the active latents of a block, by latent and then by row."""

    latent: NDArray[np.int64]
    row: NDArray[np.int64]
    value: NDArray[np.float32]
    tokens: int

    def lookup(self, latent: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the activations of ``latent[i]`` at ``rows[i]``."""
        keys = self.latent * self.tokens + self.row
        wanted = latent[:, None] * self.tokens + rows
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[place] == wanted, self.value[place], 0)


class Observer:
    """Collect statistics and examples of every latent.

    Documents in ``held_out`` give only the windows that descriptions are scored on.
    """

    def __init__(self, model: Transcoder, held_out: NDArray[np.bool_], settings: FeatureSettings) -> None:
        config, window = model.config, settings.window
        F = config.d_hidden
        self.model, self.held_out, self.settings = model, held_out, settings
        self.tokens = {"shown": 0, "held_out": 0}
        self.firings = np.zeros(F, np.int64)
        self.total = np.zeros(F)
        self.largest = np.zeros(F)
        self.histograms = Histograms(F)
        tokens, values = ((window,), np.int32, PAD), ((window,), np.float32, 0)
        ids = ((), np.int32, PAD)
        self.top = Keeper(F, settings.top, tokens=tokens, values=values, document=ids, context=ids)
        # The latents that fire at a sampled firing's side tell which ones it goes with.
        beside = {"beside": ((config.k,), np.int32, PAD)} if config.prefixes else {}
        self.sample = Keeper(F, settings.sampled, tokens=tokens, values=values, document=ids, context=ids, **beside)
        fires = ((window,), np.bool_, False)
        self.active = Keeper(F, settings.unseen, tokens=tokens, document=ids, fires=fires)
        self.usual = Keeper(1, USUAL, tokens=tokens)
        self.pool = Keeper(1, POOL * settings.unseen, tokens=tokens, document=ids, fires=((F,), np.bool_, False))
        self.words: Counter[int] = Counter()
        """Token id -> windows of documents that may be shown that hold it."""
        self._rng = np.random.default_rng(settings.seed)

    @torch.no_grad()
    def add(self, block: Block) -> None:
        """Take note of a block of contexts."""
        latents = self.model.encode(block.x)
        fired = (latents.values > 0).cpu().numpy()
        entries = latents.indices.cpu().numpy()[fired].astype(np.int64), latents.rows().cpu().numpy()[fired]
        order = np.argsort(entries[0] * len(block.token) + entries[1])
        values = latents.values.float().cpu().numpy()[fired][order]
        all_firings = Firings(entries[0][order], entries[1][order], values, len(block.token))
        hidden = self.held_out[block.document]
        self.tokens["held_out"] += int(hidden.sum())
        self.tokens["shown"] += int((~hidden).sum())
        self._count(all_firings)
        offsets = latents.offsets.cpu().numpy(), latents.indices.cpu().numpy()
        self._show(all_firings, block, hidden, offsets)
        self._hold_out(all_firings, block, hidden)

    def token_ids(self) -> Iterator[NDArray[np.integer[Any]]]:
        """Yield the ids of all tokens that were kept or counted, with repetitions and padding."""
        yield from (part.fields["tokens"] for part in (self.top, self.sample, self.active, self.pool, self.usual))
        yield np.array(list(self.words), np.int64)

    def _count(self, firings: Firings) -> None:
        F = len(self.firings)
        self.firings += np.bincount(firings.latent, minlength=F)
        self.total += np.bincount(firings.latent, firings.value, minlength=F)
        starts = np.flatnonzero(np.diff(firings.latent, prepend=-1))
        if len(starts):
            ids = firings.latent[starts]
            self.largest[ids] = np.maximum(self.largest[ids], np.maximum.reduceat(firings.value, starts))
        self.histograms.add(firings.latent, firings.value, self.largest)

    def _show(
        self, firings: Firings, block: Block, hidden: NDArray[np.bool_], csr: tuple[NDArray[np.int64], ...]
    ) -> None:
        visible = ~hidden[firings.row]
        latent, row, value = firings.latent[visible], firings.row[visible], firings.value[visible]
        if not len(latent):
            return
        best = _best_of_groups(latent, block.context[row], value)
        admitted = self.top.offer(latent[best], value[best].astype(np.float64))
        self._file(self.top, admitted, row[best], firings, block)
        admitted = self.sample.offer(latent, self._rng.random(len(latent)))
        self._file(self.sample, admitted, row, firings, block)
        if "beside" in self.sample.fields:
            offsets, indices = csr
            rows = row[admitted.candidate]
            place = offsets[rows][:, None] + np.arange(self.model.config.k)
            ids = indices[place.clip(max=len(indices) - 1)]
            self.sample.file(admitted, beside=np.where(place < offsets[rows + 1][:, None], ids, PAD))

    def _file(self, keeper: Keeper, admitted: Admitted, row: NDArray[np.int64], firings: Firings, block: Block) -> None:
        window = self.settings.window
        centre = row[admitted.candidate]
        # Two thirds of the window before the firing: what comes after cannot have caused it.
        rows = centre[:, None] + np.arange(window) - 2 * window // 3
        inside = (rows >= 0) & (rows < len(block.token))
        rows = rows.clip(0, len(block.token) - 1)
        inside &= block.context[rows] == block.context[centre][:, None]
        keeper.file(
            admitted,
            tokens=np.where(inside, block.token[rows], PAD),
            values=np.where(inside, firings.lookup(admitted.latent, rows), 0),
            document=block.document[centre],
            context=block.context[centre],
        )

    def _hold_out(self, firings: Firings, block: Block, hidden: NDArray[np.bool_]) -> None:
        """Cut contexts into windows: held-out ones are for scoring, the words of the others are counted."""
        window = self.settings.window
        number = np.cumsum(block.place % window == 0) - 1
        starts = np.flatnonzero(np.diff(number, prepend=-1))
        sizes = np.diff(starts, append=len(number))
        inside = np.arange(window) < sizes[:, None]
        rows = (starts[:, None] + np.arange(window)).clip(max=len(number) - 1)
        tokens = np.where(inside, block.token[rows], PAD)
        # A window that a context's end cuts short would be told apart by its length.
        long_enough, of_test = sizes * 2 > window, hidden[starts]
        usual = tokens[long_enough & ~of_test]
        for words in usual:
            self.words.update(set(words[words != PAD].tolist()))
        admitted = self.usual.offer(np.zeros(len(usual), np.int64), self._rng.random(len(usual)))
        self.usual.file(admitted, tokens=usual[admitted.candidate])
        place = number[firings.row]
        usable = (long_enough & of_test)[place]
        pairs = np.unique(firings.latent[usable] * len(starts) + place[usable])
        latent, tile = pairs // len(starts), pairs % len(starts)
        admitted = self.active.offer(latent, self._rng.random(len(latent)))
        chosen = tile[admitted.candidate]
        fires = (firings.lookup(admitted.latent, rows[chosen]) > 0) & inside[chosen]
        self.active.file(admitted, tokens=tokens[chosen], document=block.document[starts[chosen]], fires=fires)
        tiles = np.flatnonzero(long_enough & of_test)
        admitted = self.pool.offer(np.zeros(len(tiles), np.int64), self._rng.random(len(tiles)))
        chosen = tiles[admitted.candidate]
        fires = np.zeros((len(starts), len(self.firings)), np.bool_)
        fires[place, firings.latent] = True
        self.pool.file(admitted, tokens=tokens[chosen], document=block.document[starts[chosen]], fires=fires[chosen])


def observe(model: Transcoder, store: Store, held_out: NDArray[np.bool_], settings: FeatureSettings) -> Observer:
    """Watch the latents on the first ``settings.tokens`` tokens of the store.

    Raises:
        UserError: no latent fires.
    """
    observer = Observer(model, held_out, settings)
    with tqdm(desc="features", total=min(settings.tokens, store.tokens), unit="tok", unit_scale=True) as bar:
        for block in complete_contexts(store, settings.tokens, model.W_enc.device):
            observer.add(block)
            bar.update(len(block.token))
    if not observer.firings.any():
        raise UserError(
            f"none of the {model.config.d_hidden} latents fires on {sum(observer.tokens.values())} tokens: "
            "there is nothing to describe; train the run longer or with other parameters (train.learning_rate, train.k)"
        )
    return observer


def _best_of_groups(
    latent: NDArray[np.int64], group: NDArray[np.int32], value: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the entry with the largest value in each run of equal (latent, group); the first, if several."""
    starts = np.flatnonzero((np.diff(latent, prepend=-1) != 0) | (np.diff(group, prepend=-1) != 0))
    run = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(latent)))
    best = np.flatnonzero(value == np.maximum.reduceat(value, starts)[run])
    return best[np.diff(run[best], prepend=-1) != 0]
