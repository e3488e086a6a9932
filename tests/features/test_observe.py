"""One pass over a store: against the same counts made from dense latents."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tests_support import make_store

from transcoders.activations.store import CHUNK_ROWS, Store
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.features.blocks import complete_contexts
from transcoders.features.effects import relatives
from transcoders.features.keep import BINS, Histograms, Keeper
from transcoders.features.observe import Observer, observe
from transcoders.features.settings import FeatureSettings
from transcoders.features.texts import PAD

TOKENS, CONTEXT, D, F, K = CHUNK_ROWS + 900, 50, 8, 24, 3
SETTINGS = FeatureSettings(window=8, top=3, sampled=8, unseen=4, tokens=10**6)
HELD_OUT = np.array([False, True, False, False, True])


def transcoder(**changes: object) -> Transcoder:
    torch.manual_seed(0)
    model = Transcoder(TranscoderConfig(**{"d_in": D, "d_out": D, "d_hidden": F, "k": K, **changes}))
    for name, weight in model.named_parameters():
        if name != "b_dec":
            torch.nn.init.normal_(weight)
    return model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store") / "layer_0.zarr"
    x = torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(1))
    make_store(path, x, x, documents=np.arange(TOKENS) // CONTEXT % len(HELD_OUT))
    zarr.open_group(path, mode="r+")["context"][:] = np.arange(TOKENS) // CONTEXT
    return Store(path)


@pytest.fixture(scope="module")
def dense(store: Store) -> np.ndarray:
    return transcoder().encode(store.rows("mlp_in", 0, TOKENS)).dense().detach().numpy()


@pytest.fixture(scope="module")
def observer(store: Store) -> Observer:
    return observe(transcoder(), store, HELD_OUT, SETTINGS)


def test_blocks_hold_every_token_once_and_cut_no_context(store: Store) -> None:
    blocks = list(complete_contexts(store, 10**6, torch.device("cpu")))
    assert len(blocks) > 1
    assert np.concatenate([block.token for block in blocks]).tolist() == list(range(TOKENS))
    for before, after in pairwise(blocks):
        assert before.context[-1] != after.context[0]
    assert all((block.place == block.token % CONTEXT).all() for block in blocks)


def test_counts_and_sums_are_those_of_the_dense_latents(observer: Observer, dense: np.ndarray) -> None:
    assert observer.firings.tolist() == (dense > 0).sum(0).tolist()
    np.testing.assert_allclose(observer.total, dense.sum(0), rtol=1e-5)
    np.testing.assert_allclose(observer.largest, dense.max(0), rtol=1e-6)
    assert observer.histograms.counts.sum(1).tolist() == observer.firings.tolist()
    assert sum(observer.tokens.values()) == TOKENS


def test_top_contexts_are_the_best_one_of_each_context_of_documents_that_may_be_shown(
    observer: Observer, dense: np.ndarray
) -> None:
    context = np.arange(TOKENS) // CONTEXT
    visible = ~HELD_OUT[context % len(HELD_OUT)]
    for latent in range(F):
        best = [dense[(context == c) & visible, latent].max(initial=0) for c in range(context[-1] + 1)]
        expected = sorted((value for value in best if value > 0), reverse=True)[: SETTINGS.top]
        slots = observer.top.of(latent)
        np.testing.assert_allclose(observer.top.key[latent][slots], expected, rtol=1e-6)
        assert not HELD_OUT[observer.top.fields["document"][latent][slots]].any()


def test_windows_lie_within_their_context_and_carry_its_activations(observer: Observer, dense: np.ndarray) -> None:
    for keeper in (observer.top, observer.sample):
        for latent in range(F):
            for slot in keeper.of(latent):
                tokens = keeper.fields["tokens"][latent, slot]
                inside = tokens[tokens != PAD]
                assert set(inside // CONTEXT) == {keeper.fields["context"][latent, slot]}
                assert (np.diff(inside) == 1).all()
                values = keeper.fields["values"][latent, slot][tokens != PAD]
                np.testing.assert_allclose(values, dense[inside, latent], rtol=1e-6)
                assert values.max() > 0


def test_what_scores_descriptions_is_unseen_and_rightly_labelled(observer: Observer, dense: np.ndarray) -> None:
    pool = observer.pool
    for slot in pool.of(0):
        tokens = pool.fields["tokens"][0, slot]
        inside = tokens[tokens != PAD]
        assert HELD_OUT[inside // CONTEXT % len(HELD_OUT)].all()
        assert (pool.fields["fires"][0, slot] == (dense[inside] > 0).any(0)).all()
    for latent in range(F):
        for slot in observer.active.of(latent):
            tokens = observer.active.fields["tokens"][latent, slot]
            inside = tokens[tokens != PAD]
            assert HELD_OUT[inside // CONTEXT % len(HELD_OUT)].all()
            assert (dense[inside, latent] > 0).any()


def test_words_are_counted_in_windows_that_may_be_shown(observer: Observer) -> None:
    assert PAD not in observer.words
    assert set(observer.words.values()) == {1}  # every token id occurs once
    assert not any(HELD_OUT[token // CONTEXT % len(HELD_OUT)] for token in observer.words)


def test_memory_depends_on_the_latents_not_on_the_tokens(store: Store) -> None:
    def held(tokens: int) -> int:
        seen = observe(transcoder(), store, HELD_OUT, SETTINGS.model_copy(update={"tokens": tokens}))
        keepers = (seen.top, seen.sample, seen.active, seen.pool)
        return sum(field.nbytes for keeper in keepers for field in (keeper.key, *keeper.fields.values()))

    assert held(500) == held(TOKENS)


def test_a_dictionary_in_which_nothing_fires_is_told(store: Store) -> None:
    model = transcoder()
    with torch.no_grad():
        model.W_enc.zero_()
        model.b_enc.fill_(-1)
    with pytest.raises(UserError, match=r"none of the 24 latents fires on 4996 tokens.*train"):
        observe(model, store, HELD_OUT, SETTINGS)


def test_parents_fire_with_their_children_and_come_from_earlier_groups(tmp_path: Path) -> None:
    """Latent 0 is on for half the tokens; latent 4 for half of these, latent 5 regardless of latent 0."""
    generator = torch.Generator().manual_seed(0)
    parent, half, other = (torch.rand(3000, generator=generator) < 0.5 for _ in range(3))
    x = torch.stack([parent, ~parent, parent & half, ~(parent & half), other, ~other], 1).float()
    path = make_store(tmp_path / "layer_0.zarr", x, x)
    model = Transcoder(
        TranscoderConfig(d_in=6, d_out=6, d_hidden=8, k=3, prefixes=(4, 8), prefix_k=(1, 3), encoder="topk")
    )
    with torch.no_grad():
        for latent, column in ((0, 0), (1, 1), (4, 2), (5, 4), (6, 3), (7, 5)):
            model.W_enc[latent, column] = 1
        model.W_enc[4] *= 3
        model.W_enc[5] *= 2
    seen = observe(model, Store(path), np.array([False]), SETTINGS.model_copy(update={"sampled": 60}))
    parents, children = relatives(seen)
    assert parents[4].latent == [0]
    assert parents[4].share == [1.0]
    assert parents[5].latent == []
    assert children[0].latent == [4]
    assert all(not relatives.latent for relatives in parents[:4])


@given(arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 3)), st.integers(1, 4), st.integers(0, 99))
def test_a_keeper_keeps_the_largest_keys_however_they_come(latent: np.ndarray, size: int, seed: int) -> None:
    key = np.random.default_rng(seed).permutation(len(latent)).astype(float)
    keeper = Keeper(4, size, number=((), np.int64, -1))
    for part in np.array_split(np.arange(len(latent)), 3):
        admitted = keeper.offer(latent[part], key[part])
        keeper.file(admitted, number=part[admitted.candidate])
    for owner in range(4):
        slots = keeper.of(owner)
        entries = np.flatnonzero(latent == owner)
        expected = entries[np.argsort(-key[entries])][:size]
        assert keeper.fields["number"][owner][slots].tolist() == expected.tolist()


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=50))
def test_histograms_count_every_value_in_its_bin(values: list[float]) -> None:
    histograms, largest = Histograms(1), np.zeros(1)
    numbers = np.array(values, np.float32)
    for part in np.array_split(numbers, 3):
        if len(part):
            largest = np.maximum(largest, part.max())
            histograms.add(np.zeros(len(part), np.int64), part, largest)
    expected = np.bincount((numbers / histograms.width[0]).astype(int), minlength=BINS)
    assert histograms.counts[0].tolist() == expected.tolist()
