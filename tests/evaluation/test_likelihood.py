"""Predictions, gathered a block of logits at a time, are those of all logits at once."""

import pytest
import torch

from transcoders.core.devices import multiplies_float32_in_bf16
from transcoders.evaluation.likelihood import BLOCK, ROWS, compare, reference
from transcoders.language.head import Head

TOKENS, D_MODEL, VOCABULARY = ROWS + 3, 24, 2 * BLOCK + 77


def example(scale=1.0, cap=None, bias=False, largest=3.0):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, D_MODEL, generator=g)
    head = Head(weight, torch.randn(VOCABULARY, generator=g) if bias else None, scale, cap)
    clean = largest * torch.randn(TOKENS, D_MODEL, generator=g) / D_MODEL**0.5
    run = clean + 0.3 * torch.randn(TOKENS, D_MODEL, generator=g)
    return head, clean, run, torch.randint(VOCABULARY, (TOKENS,), generator=g)


@pytest.mark.parametrize(
    "changes",
    [{}, {"scale": 0.3}, {"bias": True}, {"cap": 4.0}, {"scale": 2.0, "cap": 5.0, "bias": True}, {"largest": 30.0}],
    ids=str,
)
def test_losses_divergences_and_agreement_are_those_of_all_logits(changes):
    head, clean, run, target = example(**changes)
    found = compare(head, reference(head, clean, target), run)
    p, q = (torch.log_softmax(head.logits(states).double(), 1) for states in (clean, run))
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(
        reference(head, clean, target).ce.double(), -p.gather(1, target[:, None])[:, 0], **tolerance
    )
    torch.testing.assert_close(found.ce.double(), -q.gather(1, target[:, None])[:, 0], **tolerance)
    torch.testing.assert_close(found.kl.double(), (p.exp() * (p - q)).sum(1), **tolerance)
    assert found.agreement.tolist() == (p.argmax(1) == q.argmax(1)).tolist()
    assert 0 < found.agreement.mean() < 1


def test_a_run_like_the_clean_one_is_at_no_distance():
    head, clean, _, target = example()
    found = compare(head, reference(head, clean, target), clean.clone())
    assert float(found.kl.abs().max()) < 1e-6
    assert found.agreement.all()


def test_the_many_unlikely_tokens_of_a_large_vocabulary_count():
    """Added one by one to a float32 sum they are lost: a log_softmax of Gemma's logits is 2e-5 nats off."""
    g = torch.Generator().manual_seed(0)
    head = Head(torch.randn(262_144, 8, generator=g), None, 1.0, None)
    states, target = 1.5 * torch.randn(16, 8, generator=g), torch.randint(262_144, (16,), generator=g)
    exact = -torch.log_softmax(head.logits(states).double(), 1).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(reference(head, states, target).ce.double(), exact, rtol=1e-6, atol=2e-6)


@pytest.mark.skipif(not multiplies_float32_in_bf16(), reason="needs a CPU with AMX")
def test_products_in_bfloat16_move_mean_losses_by_less_than_a_thousandth():
    head, clean, run, target = example()
    means = [
        [float(values.mean()) for values in compare(head, reference(head, clean, target, bf16=bf16), run, bf16=bf16)]
        for bf16 in (False, True)
    ]
    assert means[0][:2] == pytest.approx(means[1][:2], abs=1e-3)
    assert means[0] != means[1]
