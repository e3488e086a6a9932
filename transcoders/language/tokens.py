"""From text to the tokens of a context: what it begins with, what is special, and what the model has room for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from transcoders.core.errors import UserError

NONE = "none"
"""The value of ``collect.context_start`` with which contexts begin with their text."""


class ContextStart(NamedTuple):
    """Say what contexts begin with. Their first token, whatever it is, is run but neither stored nor replaced."""

    token: str | None
    """None: the first token of the text."""
    ids: list[int]
    is_bos: bool

    @property
    def attributes(self) -> dict[str, Any]:
        """What activations, and transcoders trained on them, say of it."""
        return {"context_start": self.token, "prepend_bos": self.is_bos}


def context_start(tokenizer: Any, token: str | None) -> ContextStart:
    """Return the start that ``collect.context_start`` names: a token's text, ``none``, or null for BOS.

    Raises:
        UserError: the tokenizer has no such token, or no BOS.
    """
    if token == NONE:
        return ContextStart(None, [], False)
    if token is None and tokenizer.bos_token is None:
        end = f", such as its end of text {tokenizer.eos_token!r}," if tokenizer.eos_token else ""
        raise UserError(
            "collect.context_start: null takes the tokenizer's BOS, and this tokenizer has none; name a token of its "
            f"vocabulary{end} or write none, and contexts begin with their text"
        )
    text = tokenizer.bos_token if token is None else token
    vocabulary = tokenizer.get_vocab()
    if text not in vocabulary:
        raise UserError(
            f"collect.context_start: {text!r} is no token of the model's tokenizer; name one, or null for its BOS "
            f"({tokenizer.bos_token!r}), or none"
        )
    return ContextStart(text, [vocabulary[text]], text == tokenizer.bos_token)


def recorded_start(tokenizer: Any, attributes: Mapping[str, Any]) -> ContextStart:
    """Return the start that ``attributes``, of a store or a transcoder, record; BOS where others' record none."""
    if "context_start" not in attributes:
        return context_start(tokenizer, None)
    return context_start(tokenizer, attributes["context_start"] or NONE)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of ``text``, none of them special: text that quotes ``<eos>`` ends nothing."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def special_ids(tokenizer: Any) -> list[int]:
    """Return all tokens that the tokenizer marks as special, markers of turns and unused ones among them."""
    marked = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(marked | set(tokenizer.all_special_ids))


def positions_of(model: Any) -> int | None:
    """Return the most tokens that a Hugging Face ``model`` reads at once, or None if it names no limit."""
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return next((int(limit) for limit in limits if limit), None)


def check_room(model: Any, ids: "Tensor | np.ndarray[Any, Any]", key: str) -> None:
    """Check that a Hugging Face ``model`` has positions and embeddings for ``ids`` [contexts, length].

    Raises:
        UserError: it has not; the line begins with ``key``.
    """
    longest, rows = positions_of(model), len(model.get_input_embeddings().weight)
    if longest is not None and ids.shape[1] > longest:
        raise UserError(f"{key}: {ids.shape[1]} tokens are more than the model's {longest} positions; shorten to these")
    if int(ids.max()) >= rows:
        raise UserError(
            f"{key}: the tokenizer gives token {int(ids.max())}, and the model has embeddings for {rows} only; "
            "its folder (model.name) holds the tokenizer of another model, or too few weights"
        )
