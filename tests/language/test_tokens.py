"""What contexts begin with, that text is text, and that a model has room for its tokens."""

import pytest
import torch
from families_support import POSITIONS, tiny_model
from tests_support import save_numbers_tokenizer

from transcoders.core.errors import UserError
from transcoders.language.model import load_model, load_tokenizer
from transcoders.language.tokens import NONE, check_room, context_start, recorded_start, special_ids, text_ids

CHAT = "<start_of_turn>user\nWhat does <eos> mean?<end_of_turn>"


@pytest.fixture(scope="module")
def tokenizer(gemma):
    return load_tokenizer(gemma)


def test_text_that_quotes_special_tokens_is_text(tokenizer):
    ids = text_ids(tokenizer, CHAT)
    assert not set(ids) & set(special_ids(tokenizer))
    assert tokenizer.decode(ids) == CHAT


def test_plain_text_has_the_tokens_that_it_always_had(tokenizer):
    text = "The Eiffel Tower,\n\n\t in Paris: 330 m, naïve – 東京 <b>bold</b>"
    assert text_ids(tokenizer, text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_all_tokens_that_the_tokenizer_marks_are_special(tokenizer):
    markers = tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>", "<bos>", "<unused7>"])
    assert set(markers) < set(special_ids(tokenizer))


@pytest.mark.parametrize(
    ("setting", "token", "ids", "is_bos"),
    [(None, "1", [1], True), ("1", "1", [1], True), ("0", "0", [0], False), (NONE, None, [], False)],
)
def test_a_context_begins_with_what_is_asked_and_what_is_recorded(tmp_path, setting, token, ids, is_bos):
    tokenizer = load_tokenizer(save_numbers_tokenizer(tmp_path))
    start = context_start(tokenizer, setting)
    assert (start.token, start.ids, start.is_bos) == (token, ids, is_bos)
    assert recorded_start(tokenizer, start.attributes) == start


def test_where_nothing_is_recorded_contexts_begin_with_bos(tmp_path):
    tokenizer = load_tokenizer(save_numbers_tokenizer(tmp_path))
    assert recorded_start(tokenizer, {}).ids == [1]


def test_a_tokenizer_without_bos_is_refused_with_the_remedy(tmp_path):
    tokenizer = load_tokenizer(save_numbers_tokenizer(tmp_path, bos_token=None))
    with pytest.raises(UserError, match=r"^collect\.context_start: .*has none; name .*'0', or write none"):
        context_start(tokenizer, None)
    with pytest.raises(UserError, match=r"^collect\.context_start: '<bos>' is no token of"):
        context_start(tokenizer, "<bos>")
    assert context_start(tokenizer, "0").ids == [0]


def test_tokens_that_the_model_has_no_room_for_are_refused(tmp_path):
    model = load_model(tiny_model(tmp_path, "gpt2"), torch.device("cpu"))
    check_room(model, torch.full((2, POSITIONS), 99), "key")
    with pytest.raises(UserError, match=rf"^key: {POSITIONS + 1} tokens are more than the model's {POSITIONS}"):
        check_room(model, torch.full((2, POSITIONS + 1), 99), "key")
    with pytest.raises(UserError, match=r"^key: the tokenizer gives token 100, .* embeddings for 100 only"):
        check_room(model, torch.full((2, POSITIONS), 100), "key")
