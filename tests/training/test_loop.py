import pytest
import torch
from training_support import DEVICE, run, trainer, weights_of

from transcoders.activations.reader import Batch
from transcoders.core.errors import UserError
from transcoders.training.optimiser import Adam
from transcoders.training.schedule import learning_rate
from transcoders.training.step import Stepper


def test_training_learns_a_planted_dictionary(planted, tmp_path):
    t = trainer(planted, tmp_path / "c", epochs=8)
    result = run(t)
    losses = [row["nmse"] for row in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.best_nmse < 0.1
    assert torch.allclose(weights_of(t)["W_dec"].norm(dim=1), torch.ones(64), atol=1e-5)
    assert result.history[-1]["step"] == t.schedule.steps == 8 * 30
    assert result.history[-1]["l0"] <= 4


@pytest.mark.parametrize("skip", [False, True])
def test_two_runs_give_the_same_bytes(planted, tmp_path, skip):
    runs = []
    for name in ("a", "b"):
        t = trainer(planted, tmp_path / name, {"skip": skip}, epochs=1, lambda_sparsity=1e-3 if skip else 0.0)
        history = run(t).history
        runs.append((weights_of(t), history))
    assert all(torch.equal(runs[0][0][n], runs[1][0][n]) for n in runs[0][0])
    assert runs[0][1] == runs[1][1]


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("kill_at", [12, 30, 31, 55, 89])
def test_a_killed_run_continues_to_the_same_bytes(planted, tmp_path, kill_at, monkeypatch):
    uninterrupted = trainer(planted, tmp_path / "whole")
    expected = run(uninterrupted)
    cut = trainer(planted, tmp_path / "cut")
    take = Stepper.take

    def failing(self, phase, batch, number, dead):
        if number == kill_at:
            raise KilledError
        return take(self, phase, batch, number, dead)

    monkeypatch.setattr(Stepper, "take", failing)
    with pytest.raises(KilledError):
        run(cut)
    monkeypatch.undo()
    resumed = trainer(planted, tmp_path / "cut")
    result = run(resumed)
    assert result.history == expected.history
    assert all(torch.equal(weights_of(uninterrupted)[n], v) for n, v in weights_of(resumed).items())
    assert all(torch.equal(expected.best_weights[n], v) for n, v in result.best_weights.items())
    assert not (tmp_path / "cut").exists(), "the checkpoint is deleted on success"


@pytest.mark.parametrize("batch_size", [200, 6000])
def test_a_run_killed_before_it_wrote_its_outputs_resumes_with_no_step_left(planted, tmp_path, batch_size):
    first = trainer(planted, tmp_path / "c", epochs=1, batch_size=batch_size)
    expected = first.train()
    resumed = trainer(planted, tmp_path / "c", epochs=1, batch_size=batch_size)
    resumed.stepper.take = None
    result = resumed.train()
    assert result.history == expected.history
    assert all(torch.equal(weights_of(first)[n], v) for n, v in weights_of(resumed).items())
    assert result.cost()["tokens"] == 6000
    assert result.seconds == resumed.state.seconds > result.seconds_waited


def test_a_torn_checkpoint_is_not_used(planted, tmp_path):
    (tmp_path / "c").write_bytes(b"torn")
    assert run(trainer(planted, tmp_path / "c", epochs=1)).history


def test_the_best_model_is_the_one_with_the_lowest_validation_loss(planted, tmp_path):
    result = run(trainer(planted, tmp_path / "c"))
    validated = {row["step"]: row["validation_nmse"] for row in result.history if row["validation_nmse"]}
    assert result.best_nmse == min(validated.values())
    assert validated[result.best_step] == result.best_nmse


def test_a_diverging_run_stops_and_says_what_to_lower(planted, tmp_path):
    t = trainer(planted, tmp_path / "c")
    t.job.start.statistics.y_mean[0] = float("nan")
    with pytest.raises(UserError, match=r"train\.learning_rate: the loss is nan at step"):
        run(t)


def test_too_few_tokens_for_a_batch_are_told(planted, tmp_path):
    with pytest.raises(UserError, match=r"train\.batch_size: 7000 is more than the 6000 tokens"):
        trainer(planted, tmp_path / "c", batch_size=7000)


def test_dead_latents_learn_only_through_auxk(planted, tmp_path):
    x, y = (planted.rows(name, 0, 200).to(DEVICE) for name in ("mlp_in", "mlp_out"))
    for coefficient in (0.0, 1.0):
        t = trainer(planted, tmp_path / "c", aux_coefficient=coefficient, dead_boost=0.0)
        t._begin()
        with torch.no_grad():
            t.model.b_enc[8:] += 1000.0  # so that the first eight are never among the top k
        t.state.since_fired[:8] = 10**6
        before = t.model.W_dec.clone()
        t.stepper.take(t.phase, Batch(x, y), 0, t.state.dead(t.phase.plan, 1000))
        moved = ((t.model.W_dec - before).abs() > 1e-5).any(1)
        assert moved[8:].any()
        assert moved[:8].any() == (coefficient > 0)


def test_a_step_is_adam_on_the_clipped_gradient_and_keeps_decoder_rows_unit(planted, tmp_path):
    model = trainer(planted, tmp_path / "c").model
    peer = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    theirs = torch.optim.Adam(peer.values(), lr=1e-2, eps=1e-13)
    ours = Adam(model)
    for step in range(1, 4):
        torch.manual_seed(step)
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            peer[name].grad = parameter.grad.clone()
        rows = peer["W_dec"].detach()
        peer["W_dec"].grad -= (peer["W_dec"].grad * rows).sum(1, keepdim=True) * rows
        expected = torch.nn.utils.clip_grad_norm_(peer.values(), 1.0)
        norm = ours.step_(step, 1e-2, 1.0)
        theirs.step()
        with torch.no_grad():
            peer["W_dec"].copy_(torch.nn.functional.normalize(peer["W_dec"]))
        assert float(norm) == pytest.approx(float(expected), rel=1e-4)
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter, peer[name], atol=1e-5), name


def silence(t):
    t._begin()
    t._begin = lambda: None
    with torch.no_grad():
        t.model.b_enc[5] = -20.0


def test_a_dead_latent_is_pushed_until_it_fires(planted, tmp_path):
    t = trainer(planted, tmp_path / "c", dead_boost=0.5, aux_coefficient=0.0, epochs=6)
    silence(t)
    run(t)
    assert t.state.since_fired[5] < 1000
    without = trainer(planted, tmp_path / "d", dead_boost=0.0, aux_coefficient=0.0, epochs=6)
    silence(without)
    run(without)
    assert without.state.since_fired[5] == without.schedule.steps * 200


def test_the_learning_rate_rises_holds_and_falls():
    rates = [learning_rate(step, 100, 2.0, 0.1, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[10:80] == [2.0] * 70
    assert rates[99] == pytest.approx(0.1)
    assert sorted(rates[80:], reverse=True) == rates[80:]
