import numpy as np
import pytest

from transcoders.collecting.contexts import PAD, batches, make_contexts
from transcoders.collecting.text import Document
from transcoders.core.errors import UserError


class Letters:
    """A tokenizer of one token a character."""

    def __call__(self, text, add_special_tokens, split_special_tokens):
        assert split_special_tokens
        assert not add_special_tokens
        return {"input_ids": [ord(c) for c in text]}


def documents(*lengths):
    sources = ("wikipedia", "summaries")
    return [Document(f"d{i}", chr(100 + i) * n, sources[i % 2], f"t{i}") for i, n in enumerate(lengths)]


def make(lengths, tokens, context_length=8, seed=0, pool=8.0, start=(1,)):
    sizes = {"tokens": tokens, "context_length": context_length, "pool": pool, "seed": seed}
    return make_contexts(documents(*lengths), Letters(), start=list(start), **sizes)


def test_a_context_starts_with_bos_and_holds_one_document():
    contexts = make((20, 3, 9), 30)
    assert (contexts.tokens[:, 0] == 1).all()
    for row, document in zip(contexts.tokens, contexts.document, strict=True):
        assert set(row[1:][row[1:] != PAD]) == {100 + document}


def test_exactly_as_many_tokens_as_asked():
    for tokens in (1, 7, 25, 32):
        contexts = make((20, 3, 9), tokens)
        assert ((contexts.tokens != PAD).sum(1) - 1).sum() == tokens
        assert contexts.documents["tokens"].sum() == tokens


def test_all_of_the_text_comes_back_once():
    contexts = make((20, 3, 9), 32)
    body = contexts.tokens[:, 1:]
    values, counts = np.unique(body[body != PAD], return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {100: 20, 101: 3, 102: 9}


def test_without_a_start_the_first_token_of_the_text_takes_its_place():
    contexts = make((20, 3, 9, 1), 26, start=())
    assert ((contexts.tokens[:, 0] >= 100) & (contexts.tokens[:, 0] < 103)).all(), "a lone token has none to follow it"
    assert ((contexts.tokens != PAD).sum(1) - 1).sum() == 26
    assert contexts.documents["tokens"].tolist() == [17, 2, 7, 0]


def test_too_little_text_says_how_much_there_is():
    with pytest.raises(
        UserError, match=r"collect\.tokens: 33 tokens were asked for, but the text has only 32 "
    ) as error:
        make((20, 3, 9), 33)
    assert "(wikipedia: 29, summaries: 3)" in str(error.value)
    with pytest.raises(UserError, match=r"the text has only 20; lower"):
        make((20,), 33)


def test_the_table_of_documents_has_their_titles_sources_and_topics():
    table = make((20, 3, 9), 32).documents
    assert table.to_dict("list") == {
        "title": ["d0", "d1", "d2"],
        "source": ["wikipedia", "summaries", "wikipedia"],
        "topic": ["t0", "t1", "t2"],
        "tokens": [20, 3, 9],
    }


def test_the_seed_decides_the_order():
    lengths = (70,) * 10
    assert np.array_equal(make(lengths, 300).tokens, make(lengths, 300).tokens)
    assert not np.array_equal(make(lengths, 300).tokens, make(lengths, 300, seed=1).tokens)


def test_batches_are_a_partition_sorted_by_length():
    contexts = make((20, 3, 9, 30, 41), 100)
    plan = batches(contexts, 4)
    assert sorted(np.concatenate(plan)) == list(range(len(contexts.tokens)))
    lengths = [(contexts.tokens[rows] != PAD).sum(1).max() for rows in plan]
    assert lengths == sorted(lengths, reverse=True)
