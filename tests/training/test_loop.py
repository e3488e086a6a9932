import numpy as np
import pytest
import torch
from tests_support import make_store

from transcoders.activations.reader import Batch, ShuffledReader, ordered_batches
from transcoders.activations.store import Store
from transcoders.dictionary.transcoder import Transcoder, TranscoderConfig
from transcoders.errors import UserError
from transcoders.training.initialise import initialise_, measure, sample_of
from transcoders.training.loop import Trainer, compute_losses
from transcoders.training.optimiser import Adam
from transcoders.training.schedule import learning_rate
from transcoders.training.settings import TrainSettings

CPU = torch.device("cpu")
EVERYTHING = np.ones(1, dtype=bool)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """y = a sparse combination of 24 directions that x announces, plus offsets in x and y."""
    torch.manual_seed(0)
    active = (torch.rand(6000, 24) < 0.1) * (1 + torch.rand(6000, 24))
    x = active @ torch.nn.functional.normalize(torch.randn(24, 16)) + 0.5
    y = 30 * (active @ torch.nn.functional.normalize(torch.randn(24, 16)) - 1.0)
    return Store(make_store(tmp_path_factory.mktemp("planted") / "s.zarr", x, y))


def trainer(store, checkpoint, **changes):
    settings = TrainSettings(
        **({"d_hidden": 64, "k": 4, "epochs": 3, "batch_size": 200, "learning_rate": 3e-3, "log_every": 7,
            "validate_every": 15, "checkpoint_every": 11, "dead_after_tokens": 1000} | changes)
    )  # fmt: skip
    batches = list(ordered_batches(store, EVERYTHING, 10_000, CPU))
    statistics = measure(batches)
    model = Transcoder(TranscoderConfig(
        d_in=16, d_out=16, d_hidden=64, k=settings.k,
        input_scale=statistics.x_scale, output_scale=statistics.y_scale,
    ))  # fmt: skip
    initialise_(model, statistics, sample_of(batches), seed=0)
    reader = ShuffledReader(store, EVERYTHING, batch_size=settings.batch_size, buffer_tokens=4096, seed=0, device=CPU)
    return Trainer(model, reader, settings, [Batch(b.x, b.y) for b in batches], checkpoint)


def weights_of(t):
    return {name: value.clone() for name, value in t.model.state_dict().items()}


def test_training_learns_a_planted_dictionary(planted, tmp_path):
    t = trainer(planted, tmp_path / "c", epochs=8)
    result = t.run(lambda history: None)
    losses = [row["nmse"] for row in result.history]
    assert losses[-1] < 0.5 * losses[0]
    assert result.best_nmse < 0.1
    assert torch.allclose(t.model.W_dec.norm(dim=1), torch.ones(64), atol=1e-5)
    assert result.history[-1]["step"] == t.steps == 8 * 30
    assert result.history[-1]["l0"] <= 4


@pytest.mark.parametrize("skip", [False, True])
def test_two_runs_give_the_same_bytes(planted, tmp_path, skip):
    runs = []
    for name in ("a", "b"):
        t = trainer(planted, tmp_path / name, epochs=1)
        if skip:
            t.settings = t.settings.model_copy(update={"lambda_sparsity": 1e-3})
        history = t.run(lambda history: None).history
        runs.append((weights_of(t), history))
    assert all(torch.equal(runs[0][0][n], runs[1][0][n]) for n in runs[0][0])
    assert runs[0][1] == runs[1][1]


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("kill_at", [12, 30, 31, 55, 89])
def test_a_killed_run_continues_to_the_same_bytes(planted, tmp_path, kill_at, monkeypatch):
    whole = trainer(planted, tmp_path / "whole")
    expected = whole.run(lambda history: None)
    cut = trainer(planted, tmp_path / "cut")
    step = Trainer._step

    def failing(self, batch):
        if self.step == kill_at:
            raise KilledError
        return step(self, batch)

    monkeypatch.setattr(Trainer, "_step", failing)
    with pytest.raises(KilledError):
        cut.run(lambda history: None)
    monkeypatch.undo()
    resumed = trainer(planted, tmp_path / "cut")
    result = resumed.run(lambda history: None)
    assert result.history == expected.history
    assert all(torch.equal(weights_of(whole)[n], v) for n, v in weights_of(resumed).items())
    assert all(torch.equal(expected.best_weights[n], v) for n, v in result.best_weights.items())
    assert not (tmp_path / "cut").exists(), "the checkpoint is deleted on success"


def test_a_torn_checkpoint_is_not_used(planted, tmp_path):
    (tmp_path / "c").write_bytes(b"torn")
    assert trainer(planted, tmp_path / "c", epochs=1).run(lambda history: None).history


def test_the_best_model_is_the_one_with_the_lowest_validation_loss(planted, tmp_path):
    result = trainer(planted, tmp_path / "c").run(lambda history: None)
    validated = {row["step"]: row["validation_nmse"] for row in result.history if row["validation_nmse"]}
    assert result.best_nmse == min(validated.values())
    assert validated[result.best_step] == result.best_nmse


def test_a_diverging_run_stops_and_says_what_to_lower(planted, tmp_path):
    t = trainer(planted, tmp_path / "c")
    t.model.b_dec.data[0] = float("nan")
    with pytest.raises(UserError, match=r"train\.learning_rate: the loss is nan at step"):
        t.run(lambda history: None)


def test_too_few_tokens_for_a_batch_are_told(planted, tmp_path):
    with pytest.raises(UserError, match=r"train\.batch_size: 7000 is more than the 6000 tokens"):
        trainer(planted, tmp_path / "c", batch_size=7000)


def test_dead_latents_learn_only_through_auxk(planted, tmp_path):
    t = trainer(planted, tmp_path / "c")
    with torch.no_grad():
        t.model.b_enc[:8] = -1000.0
    x, y = planted.rows("mlp_in", 0, 200), planted.rows("mlp_out", 0, 200)
    x, y = x / t.model.config.input_scale, y / t.model.config.output_scale
    for dead, learns in ((torch.empty(0, dtype=torch.long), False), (torch.arange(8), True)):
        t.model.zero_grad()
        with torch.no_grad():
            t.model.b_enc[:8] = -1000.0
        losses = compute_losses(t.model, x, y, dead, t.settings)
        assert (losses.aux > 0) == learns
    losses.total.backward()
    assert t.model.W_dec.grad is not None


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


def test_a_dead_latent_is_pushed_until_it_fires(planted, tmp_path):
    t = trainer(planted, tmp_path / "c", dead_boost=0.5, aux_coefficient=0.0, epochs=6)
    with torch.no_grad():
        t.model.b_enc[5] = -20.0
    t.run(lambda history: None)
    assert t.since_fired[5] < 1000
    without = trainer(planted, tmp_path / "d", dead_boost=0.0, aux_coefficient=0.0, epochs=6)
    with torch.no_grad():
        without.model.b_enc[5] = -20.0
    without.run(lambda history: None)
    assert without.since_fired[5] == without.steps * 200


def test_the_learning_rate_rises_holds_and_falls():
    rates = [learning_rate(step, 100, 2.0, 0.1, 0.2) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[10:80] == [2.0] * 70
    assert rates[99] == pytest.approx(0.1)
    assert sorted(rates[80:], reverse=True) == rates[80:]
