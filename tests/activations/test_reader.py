import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import make_store

from transcoders.activations import reader as reader_module
from transcoders.activations.reader import ShuffledReader, ordered_batches
from transcoders.activations.store import Store
from transcoders.core.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """20 000 rows whose x is the row number; document = row // 100."""
    rows = torch.arange(20_000, dtype=torch.float32)[:, None].expand(-1, 4)
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    return Store(make_store(path, rows, -rows, documents=np.arange(20_000) // 100))


def read(store, documents, batches, first=0, seed=0, batch_size=300, buffer_tokens=8192):
    reader = ShuffledReader(store, documents, batch_size=batch_size, buffer_tokens=buffer_tokens, seed=seed, device=CPU)
    columns = []
    for batch, _ in zip(reader.batches(first), range(batches), strict=False):
        assert torch.equal(batch.y, -batch.x)
        columns.append(batch.x[:, 0].long())
    return reader, columns


def test_an_epoch_holds_every_row_of_the_chosen_documents_once(opened):
    chosen = np.arange(200) % 3 != 0
    reader, _ = read(opened, chosen, 0)
    _, batches = read(opened, chosen, reader.batches_per_epoch)
    rows = torch.cat(batches)
    assert len(rows) == reader.tokens // 300 * 300
    assert len(rows.unique()) == len(rows)
    assert chosen[rows.numpy() // 100].all()


def test_epochs_differ_and_the_seed_decides(opened):
    everything = np.ones(200, dtype=bool)
    reader, first = read(opened, everything, 2 * 66)
    assert reader.batches_per_epoch == 66
    assert not torch.equal(first[0], first[66])
    _, again = read(opened, everything, 2 * 66)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    _, other = read(opened, everything, 1, seed=1)
    assert not torch.equal(first[0], other[0])


@settings(max_examples=15, deadline=None)
@given(first=st.integers(0, 140), batch_size=st.integers(250, 900), buffer_tokens=st.sampled_from([1, 4096, 10**6]))
def test_starting_in_the_middle_gives_what_would_have_come(opened, first, batch_size, buffer_tokens):
    chosen = np.arange(200) % 4 != 1
    kwargs = {"batch_size": batch_size, "buffer_tokens": buffer_tokens}
    _, full_run = read(opened, chosen, first + 3, **kwargs)
    _, tail = read(opened, chosen, 3, first=first, **kwargs)
    assert all(torch.equal(a, b) for a, b in zip(full_run[first:], tail, strict=True))


def test_recomputed_outputs_are_those_that_would_have_been_stored(tmp_path):
    x = torch.randn(9000, 4)
    both = Store(make_store(tmp_path / "both.zarr", x, -x))
    alone = Store(make_store(tmp_path / "alone.zarr", x, x, outputs="recomputed"))
    alone.mlp = torch.neg
    assert torch.equal(alone.rows("mlp_out", 10, 5000), both.rows("mlp_out", 10, 5000))
    everything = np.ones(1, dtype=bool)
    for a, b in zip(read(both, everything, 40, first=7)[1], read(alone, everything, 40, first=7)[1], strict=True):
        assert torch.equal(a, b)  # and `read` compares y with x
    for a, b in zip(*(ordered_batches(s, everything, 9000, CPU) for s in (both, alone)), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)


def test_a_store_of_x_alone_says_what_y_needs(tmp_path):
    alone = Store(make_store(tmp_path / "alone.zarr", torch.randn(9, 4), torch.randn(9, 4), outputs="recomputed"))
    with pytest.raises(UserError, match=r"alone\.zarr: holds x alone \(collect\.outputs: recomputed\), and y needs"):
        read(alone, np.ones(1, dtype=bool), 1, batch_size=3)


def test_rows_of_a_batch_come_from_all_over_the_buffer(opened):
    """An ideal shuffle draws 300 of 200 documents' rows: about 155 distinct documents."""
    _, batches = read(opened, np.ones(200, dtype=bool), 20, buffer_tokens=10**6)
    distinct = np.mean([len((batch // 100).unique()) for batch in batches])
    assert distinct == pytest.approx(200 * (1 - (1 - 1 / 200) ** 300), rel=0.05)


def test_ordered_batches_stop_at_the_limit_and_keep_labels(opened):
    chosen = np.arange(200) < 50
    batches = list(ordered_batches(opened, chosen, 4500, CPU))
    assert sum(len(batch.x) for batch in batches) == 4500
    for batch in batches:
        assert chosen[batch.document].all()
        assert (batch.x[:, 0].numpy() == batch.token).all()


def test_memory_is_two_loads_whatever_the_store(opened):
    reader = ShuffledReader(opened, np.ones(200, dtype=bool), batch_size=100, buffer_tokens=4096, seed=0, device=CPU)
    assert max(len(load) for load in reader._loads(0)) * reader_module.CHUNK_ROWS == 4096
