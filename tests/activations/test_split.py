import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcoders.activations.settings import SplitSettings
from transcoders.activations.split import PARTS, documents_of, split_documents
from transcoders.core.errors import UserError


def frame(count):
    return pd.DataFrame({"title": [f"article {i}" for i in range(count)], "tokens": 10})


@given(seed=st.integers(0, 1000))
def test_every_document_has_one_part(seed):
    split = split_documents(frame(500), SplitSettings(seed=seed))
    masks = [documents_of(split, part) for part in PARTS]
    assert (sum(mask.astype(int) for mask in masks) == 1).all()
    assert 0.05 < masks[2].mean() < 0.16


def test_added_documents_move_none():
    few, many = (split_documents(frame(n), SplitSettings()) for n in (200, 400))
    assert (few["split"] == many["split"][:200]).all()


def test_the_seed_moves_some():
    first, second = (split_documents(frame(300), SplitSettings(seed=s))["split"] for s in (0, 1))
    assert (first != second).any()


def test_an_empty_part_is_refused():
    with pytest.raises(UserError, match=r"split\.(train|validation|test): no document of 1 falls"):
        split_documents(frame(1), SplitSettings())
