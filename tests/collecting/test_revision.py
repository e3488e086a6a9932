"""A data set of the Hub is read at a commit, which is recorded, and not at a branch that moves."""

from types import SimpleNamespace

import pytest

from transcoders.collecting.revision import pinned
from transcoders.collecting.settings import TextSettings
from transcoders.core.errors import UserError

TEXT = TextSettings(source="hub", path="owner/texts")


def test_the_commit_is_resolved_unless_it_is_given(monkeypatch):
    commits = {None: "a" * 40, "v2": "b" * 40}

    def answer(self, name, revision):
        assert name == "owner/texts"
        return SimpleNamespace(sha=commits[revision])

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", answer)
    assert pinned(TEXT).revision == "a" * 40
    assert pinned(TEXT.model_copy(update={"revision": "v2"})).revision == "b" * 40
    fixed = TEXT.model_copy(update={"revision": "c" * 40})
    assert pinned(fixed) == fixed
    assert pinned(TextSettings()) == TextSettings()


def test_without_a_connection_no_state_is_guessed():
    with pytest.raises(UserError, match=r"^collect\.text\.path: could not find 'owner/texts' on the Hugging Face Hub"):
        pinned(TEXT)
    with pytest.raises(UserError, match=r"^collect\.text\.path: 'a b' is no id of the Hugging Face Hub"):
        pinned(TEXT.model_copy(update={"path": "a b"}))
