"""Promoted tokens against the real model's own final norm and unembedding."""

import pytest
import torch

from transcoders.features.effects import effects_of, nearest, read_unembedding
from transcoders.language.model import load_model, load_tokenizer


def test_promoted_tokens_are_those_whose_logits_the_row_raises(gemma) -> None:
    model = load_model(gemma, torch.device("cpu"))
    tokenizer = load_tokenizer(gemma)
    unembedding = read_unembedding(model, tokenizer)
    torch.testing.assert_close(unembedding.gain, 1 + model.model.norm.weight.detach())

    rows = torch.randn(3, 640, generator=torch.Generator().manual_seed(0))
    # The norm's scale is 1 for a residual stream of mean square 1; the row's effect is the derivative there.
    effects = effects_of(rows, unembedding, 5)
    logits = (rows * (1 + model.model.norm.weight)) @ model.lm_head.weight.T
    named = logits[:, unembedding.named]
    for i in range(3):
        centred = named[i] - named[i].mean()
        best = centred.topk(5)
        assert effects.promoted[i].tolist() == unembedding.named[best.indices].tolist()
        assert effects.promoted_by[i] == pytest.approx(best.values.detach().numpy(), rel=1e-3)
        assert effects.suppressed[i].tolist() == unembedding.named[(-centred).topk(5).indices].tolist()
    assert tokenizer.bos_token_id not in unembedding.named.tolist()
    assert not any("unused" in text for text in tokenizer.convert_ids_to_tokens(unembedding.named.tolist()))


def test_nearest_rows_leave_out_the_row_itself_and_the_dead() -> None:
    rows = torch.tensor([[1.0, 0], [0.9, 0.1], [1, 0.02], [0, 1]])
    living = torch.tensor([0, 1, 3]).numpy()
    ids, cosines = nearest(rows, living, 2)
    assert ids.tolist() == [[1, 3], [0, 3], [1, 0]]
    assert cosines[0].tolist() == pytest.approx([0.9 / (0.82**0.5), 0], abs=1e-6)
