"""The benchmark of hedging: its control is the same run until latents join, and its measure is right where known."""

import numpy as np
import pytest
import torch
from tests_support import make_store

from benchmarks.hedging import CONTROL, GROWS, NESTED, hedging, share_within
from benchmarks.quality import task_of, trainer_of
from transcoders.activations.store import Store
from transcoders.training.settings import TrainSettings

OLD, NEW, K = 60, 4, 16


def test_the_control_is_the_same_run_until_new_latents_join(tmp_path) -> None:
    x = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    path = make_store(tmp_path / "store", x, x.flip(1).abs(), documents=np.arange(4000) // 100)
    documents = {part: np.arange(40) % 4 == n for n, part in enumerate(("validation", "test"))}
    documents["train"] = np.arange(40) % 4 > 1
    task = task_of(Store(path), documents, torch.device("cpu"))
    share = OLD / (OLD + NEW)
    half = {}
    for name, variant, d_hidden, k in (
        ("control", CONTROL, OLD, 15),
        ("grows", GROWS, 64, K),
        ("nested", NESTED, 64, K),
    ):
        if variant.prefixes[0] != 1:
            variant = variant.model_copy(update={"prefixes": (share, 1.0), "prefix_k": (share, 1.0)})
        settings = TrainSettings(d_hidden=d_hidden, k=k, epochs=4, batch_size=100)
        trainer = trainer_of(task, settings, variant, 0, tmp_path / name)
        assert [(plan.first_step, plan.steps) for plan in trainer.schedule.phases] == [(0, 40), (40, 40)]
        seen: list[torch.Tensor] = []
        trainer.train(lambda _, trainer=trainer, seen=seen: seen.append(trainer.model.W_dec[:OLD].detach().clone()))
        assert len(seen) == 2
        half[name] = seen
    assert torch.equal(half["control"][0], half["grows"][0])
    assert torch.equal(half["control"][0], half["nested"][0])
    assert not torch.equal(half["control"][1], half["grows"][1])


def test_a_change_along_new_rows_is_hedging_and_any_other_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    control, new = torch.randn(200, 32, generator=generator), torch.eye(32)[:4]
    along, across = torch.zeros(200, 32), torch.zeros(200, 32)
    along[:, :4], across[:, 4:] = control[:, :4], control[:, 4:]
    assert share_within(along, new) == pytest.approx(1)
    assert share_within(across, new) == pytest.approx(0, abs=1e-6)
    change, inside, beyond = hedging(control + 0.1 * along, control, new, seed=0)
    assert change == pytest.approx(0.1 * along.norm(dim=1).mean().item(), rel=1e-5)
    assert inside == pytest.approx(1, abs=1e-4)
    assert beyond == pytest.approx(1 - 4 / 32, abs=0.03)  # four of 32 directions hold an eighth of anything
    _, _, of_noise = hedging(control + torch.randn(200, 32, generator=generator), control, new, seed=0)
    assert of_noise == pytest.approx(0, abs=0.03)
