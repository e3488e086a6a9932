"""Nested and progressive training and every encoder, on a planted dictionary."""

import numpy as np
import pytest
import torch
from training_support import DEVICE, EVERYTHING, run, trainer, weights_of

from transcoders import kernels
from transcoders.activations.reader import Batch, ordered_batches
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.training.objective import Objective
from transcoders.training.phases import phase_plans
from transcoders.training.settings import TrainSettings, VariantSettings
from transcoders.training.step import Stepper

NESTED = {"prefixes": (0.25, 0.5, 1), "prefix_k": (0.5, 0.75, 1)}
PROGRESSIVE = {**NESTED, "training": "progressive"}
VARIANTS = {
    "topk": {},
    "groupmax": {"encoder": "groupmax"},
    "batchtopk": {"encoder": "batchtopk"},
    "jumprelu": {"encoder": "jumprelu"},
    "relu": {"encoder": "relu"},
    "skip": {"skip": True},
    "ortsae": {"orthogonality": "penalty"},
    "nested": NESTED,
    "nested_batchtopk": {**NESTED, "encoder": "batchtopk"},
    "nested_jumprelu": {**NESTED, "encoder": "jumprelu", "skip": True},
    "sampled": {**NESTED, "sampled_prefixes": 3},
    "stop_gradient": {**NESTED, "stop_gradient": True},
    "progressive": PROGRESSIVE,
    "progressive_skip": {**PROGRESSIVE, "skip": True, "orthogonality": "penalty"},
    "progressive_batchtopk": {**PROGRESSIVE, "encoder": "batchtopk"},
    "progressive_relu": {**PROGRESSIVE, "encoder": "relu"},
    "projected": {**PROGRESSIVE, "orthogonality": "projection"},
    "unfrozen": {**PROGRESSIVE, "previous_lr_scale": 0.3, "joint_finish": 0.3},
}


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_and_a_killed_run_continues_to_the_same_bytes(planted, tmp_path, name, monkeypatch):
    uninterrupted = trainer(planted, tmp_path / "whole", VARIANTS[name], epochs=4)
    expected = run(uninterrupted)
    errors = [row["nmse"] for row in expected.history]
    assert errors[-1] < 0.8 * errors[0]
    assert torch.allclose(weights_of(uninterrupted)["W_dec"].norm(dim=1), torch.ones(64), atol=1e-5)
    for kill_at in np.random.default_rng(len(name)).integers(12, uninterrupted.schedule.steps, 3):
        cut = trainer(planted, tmp_path / "cut", VARIANTS[name], epochs=4)
        take = Stepper.take

        def failing(self, phase, batch, number, dead, kill_at=kill_at, take=take):
            if number == kill_at:
                raise KilledError
            return take(self, phase, batch, number, dead)

        with monkeypatch.context() as patch:
            patch.setattr(Stepper, "take", failing)
            with pytest.raises(KilledError):
                run(cut)
        resumed = trainer(planted, tmp_path / "cut", VARIANTS[name], epochs=4)
        result = run(resumed)
        assert result.history == expected.history
        assert all(torch.equal(weights_of(uninterrupted)[n], v) for n, v in weights_of(resumed).items())
        assert all(torch.equal(expected.best_weights[n], v) for n, v in result.best_weights.items())


@pytest.mark.parametrize(
    "name", ["topk", "skip", "batchtopk", "nested_batchtopk", "jumprelu", "sampled", "progressive"]
)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("auto", 2e-2)])
def test_micro_batches_give_the_gradients_of_the_batch(planted, tmp_path, name, precision, tolerance):
    x, y = (planted.rows(name, 0, 200).to(DEVICE) for name in ("mlp_in", "mlp_out"))
    gradients = []
    for size in (None, 66):
        changes = {"micro_batch_size": size, "aux_every": 4, "aux_coefficient": 1.0, "precision": precision}
        t = trainer(planted, tmp_path / "c", VARIANTS[name], **changes)
        t._begin()
        dead = torch.arange(5, device=DEVICE)
        batch = Batch(x / t.model.config.input_scale, y / t.model.config.output_scale)
        t.stepper.gradients(t.phase, batch, 0, [dead])
        gradients.append({name: p.grad for name, p in t.phase.part.named_parameters() if p.grad is not None})
    assert {"W_enc", "W_dec"} <= set(gradients[0])
    for key, of_batch in gradients[0].items():
        assert (gradients[1][key] - of_batch).norm() <= tolerance * of_batch.norm(), key


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_short_memory_halves_the_micro_batch_and_nothing_else(planted, tmp_path, monkeypatch, caplog, error):
    expected = trainer(planted, tmp_path / "a", epochs=1, micro_batch_size=50)
    run(expected)
    losses = Objective.losses

    def short(self, x, *args):
        if len(x) > 50:
            raise error
        return losses(self, x, *args)

    monkeypatch.setattr(Objective, "losses", short)
    t = trainer(planted, tmp_path / "b", epochs=1)
    run(t)
    assert "out of memory: 50 tokens at a time" in caplog.text
    assert all(torch.equal(weights_of(expected)[n], v) for n, v in weights_of(t).items())
    monkeypatch.setattr(Objective, "losses", lambda self, x, *args: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match=r"train\.d_hidden: out of memory even with"):
        run(trainer(planted, tmp_path / "b", epochs=1))
    monkeypatch.setattr(Objective, "losses", lambda *args: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run(trainer(planted, tmp_path / "b", epochs=1))


def small(variant, dtype=torch.float64, d_hidden=32, k=8):
    torch.manual_seed(0)
    model = Transcoder(
        TranscoderConfig(
            encoder=variant.encoder,
            skip=variant.skip,
            d_in=12,
            d_out=12,
            d_hidden=d_hidden,
            k=k,
            prefixes=variant.sizes(d_hidden),
            prefix_k=variant.ks(k),
        )
    ).to(dtype)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(torch.rand_like(parameter) * 0.3 if name == "threshold" else torch.randn_like(parameter))
    return model, torch.randn(40, 12, dtype=dtype), torch.randn(40, 12, dtype=dtype)


@pytest.mark.parametrize("encoder", ["topk", "batchtopk", "jumprelu", "relu"])
@pytest.mark.parametrize("weights", [(), (3.0, 1.0, 2.0)])
def test_the_nested_loss_is_the_sum_over_separately_decoded_prefixes(encoder, weights):
    variant = VariantSettings(encoder=encoder, skip=True, prefix_weights=weights, **NESTED)
    model, x, y = small(variant)
    losses = Objective(model, TrainSettings(k=8), variant).losses(x, y)
    losses.total.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    pre = x @ model.W_enc.T + model.b_enc
    z = losses.latents[0].dense().detach()
    z = pre.relu() * (z > 0) if encoder != "jumprelu" else losses.latents[0].dense()
    share = torch.tensor(weights or (1.0, 1.0, 1.0), dtype=torch.float64)
    naive = sum(
        w * (y - z[:, :m] @ model.W_dec[:m] - model.b_dec - x @ model.W_skip.T).square().mean()
        for w, m in zip(share / share.sum(), (8, 16, 32), strict=True)
    )
    if encoder in ("relu", "jumprelu"):  # 1e-3 is the weight that the penalty starts with
        naive = naive + 1e-3 * (z if encoder == "relu" else z > 0).sum() / len(x)
    assert torch.allclose(losses.total, naive, rtol=1e-12)
    if encoder != "jumprelu":  # whose gradient to the threshold is no derivative: the kernels' tests have it
        naive.backward()
        for name, gradient in ours.items():
            assert torch.allclose(gradient, model.get_parameter(name).grad, rtol=1e-10, atol=1e-12), name


def test_no_gradient_passes_between_groups_with_stop_gradient():
    variant = VariantSettings(stop_gradient=True, **NESTED)
    model, x, y = small(variant)
    Objective(model, TrainSettings(k=8), variant).losses(x, y).total.backward()
    first = model.W_dec.grad[:8].clone()
    model.zero_grad()
    z = model.encode_normalised(x)
    (y - kernels.decode(kernels.between(z, 0, 8), model.W_dec) - model.b_dec).square().mean().div(3).backward()
    assert torch.allclose(first, model.W_dec.grad[:8])
    assert model.W_dec.grad[:8].abs().sum() > 0


@pytest.mark.parametrize("name", ["progressive", "progressive_skip", "projected", "progressive_batchtopk"])
def test_a_phase_leaves_frozen_latents_bit_identical(planted, tmp_path, name):
    t = trainer(planted, tmp_path / "c", VARIANTS[name])
    seen = []
    enter = t._phase

    def entering(plan):
        seen.append((plan.new, {n: v.clone() for n, v in t.model.truncate(plan.new).state_dict().items()}))
        return enter(plan)

    t._phase = entering
    run(t)
    assert [new for new, _ in seen] == [16, 32]
    for new, weights in seen:
        for key, value in t.model.truncate(new).state_dict().items():
            assert torch.equal(value, weights[key]), key
    assert {row["phase"]: row["latents"] for row in t.history.rows} == {1: 16, 2: 32, 3: 64}


def test_projection_keeps_new_rows_orthogonal_to_their_neighbours(planted, tmp_path):
    t = trainer(planted, tmp_path / "c", VARIANTS["projected"] | {"orthogonality_neighbours": 3})
    run(t)
    near = t.model.W_dec[:32][t.phase.projections[0].neighbours]
    assert near.shape == (32, 3, 16)
    assert torch.einsum("ncd,nd->nc", near, t.model.W_dec[32:]).abs().max() < 1e-5


def test_the_penalty_makes_rows_less_alike(planted, tmp_path):
    def overlap(variant):
        t = trainer(planted, tmp_path / "c", variant, epochs=6)
        run(t)
        t.model.requires_grad_(False)
        return float((t.model.W_dec[32:] @ t.model.W_dec[:32].T).square().mean())

    plain, penalised = (
        overlap({**PROGRESSIVE, "orthogonality": o, "orthogonality_coefficient": 0.1}) for o in ("none", "penalty")
    )
    assert penalised < 0.8 * plain


@pytest.mark.parametrize("name", ["batchtopk", "nested_batchtopk", "progressive_batchtopk"])
def test_batchtopks_threshold_gives_the_l0_of_training_on_held_out_tokens(planted, tmp_path, name):
    k = 2 if name == "batchtopk" else 3  # about as many as the planted dictionary has active
    t = trainer(planted, tmp_path / "c", VARIANTS[name], epochs=10, k=k)
    run(t)
    x = torch.cat([b.x for b in ordered_batches(planted, EVERYTHING, 6000, DEVICE)])
    info = t.model.requires_grad_(False).forward_with_info(x)
    assert float(info.l0.mean()) == pytest.approx(k, rel=0.05)
    few, many = t.model(x[:7]), t.model(x)[:7]
    tolerance = 1e-6 if x.is_cuda else 0.0  # CUDA's products round by the number of rows
    torch.testing.assert_close(few, many, rtol=tolerance, atol=tolerance)  # a token's latents depend on no other


@pytest.mark.parametrize(("name", "k"), [("jumprelu", 2), ("relu", 2), ("relu", 4)])
def test_the_sparsity_penalty_brings_l0_to_k(planted, tmp_path, name, k):
    t = trainer(planted, tmp_path / "c", VARIANTS[name], epochs=30, k=k, aux_coefficient=0.0, dead_boost=0.0)
    assert run(t).history[-1]["l0"] == pytest.approx(k, rel=0.1)


@pytest.mark.parametrize("name", ["nested", "nested_batchtopk", "nested_jumprelu", "progressive"])
def test_a_truncated_transcoder_is_the_prefix_of_the_whole(planted, tmp_path, name):
    t = trainer(planted, tmp_path / "c", VARIANTS[name], epochs=1)
    run(t)
    model, x = t.model.requires_grad_(False), planted.rows("mlp_in", 0, 100).to(DEVICE)
    for m in (16, 32):
        small = model.truncate(m)
        prefix = kernels.between(model.encode(x), 0, m)
        expected = kernels.decode(prefix, model.W_dec) + model.b_dec
        if model.config.skip:
            expected += x / model.config.input_scale @ model.W_skip.T
        assert torch.allclose(small(x), expected * model.config.output_scale, atol=1e-4)
        small.save(tmp_path / str(m))
        assert torch.equal(Transcoder.load(tmp_path / str(m), DEVICE)(x), small(x))
    halves = model.part(0, 32)(x) + model.part(32, 64)(x)
    assert torch.allclose(halves, model(x), atol=1e-4)
    with pytest.raises(ValueError, match="divides only at its prefixes"):
        model.truncate(17)


def test_phases_share_the_steps_out():
    variant = VariantSettings(**PROGRESSIVE, phase_fractions=(0.5, 0.3, 0.2), joint_finish=0.1)
    config = TranscoderConfig(d_in=4, d_out=4, d_hidden=64, k=8, prefixes=(16, 32, 64), prefix_k=(4, 6, 8))
    plans = phase_plans(config, variant, 1000)
    assert [(s.first_step, s.steps, s.new, s.stop, s.frozen) for s in plans] == [
        (0, 450, 0, 16, False),
        (450, 270, 16, 32, True),
        (720, 180, 32, 64, True),
        (900, 100, 0, 64, False),
    ]
    with pytest.raises(ValueError, match="has no step"):
        phase_plans(config, variant, 3)


def test_a_phase_starts_again_with_a_small_rate_and_fresh_moments(planted, tmp_path):
    t = trainer(planted, tmp_path / "c", PROGRESSIVE, log_every=1)
    history = run(t).history
    for phase in (1, 2, 3):
        rates = [row["learning_rate"] for row in history if row["phase"] == phase]
        assert rates[0] < rates[5] == pytest.approx(3e-3)
        assert rates[-1] < 0.3 * rates[5]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"prefixes": (0.5, 0.25, 1), "prefix_k": (0.2, 0.5, 1)}, "must ascend and end with 1"),
        ({"prefixes": (0.25, 0.5)}, "must ascend and end with 1"),
        ({"prefixes": (0.5, 1)}, "prefix_k: give a share of k for each of the 2 prefixes"),
        ({**NESTED, "prefix_k": (0.5, 1)}, "has 2 numbers for 3 prefixes"),
        ({"training": "progressive"}, "need prefixes"),
        ({**PROGRESSIVE, "phase_fractions": (0.5, 0.4, 0.3)}, "add up to 1.2"),
        ({**NESTED, "orthogonality": "projection"}, "projection needs progressive training"),
    ],
)
def test_contradictions_in_a_variant_are_told(mistake, message):
    with pytest.raises(ValueError, match=message):
        VariantSettings(**mistake)


def test_ks_rise_by_at_least_one_with_every_prefix():
    variant = VariantSettings(prefixes=(0.0625, 0.125, 0.25, 0.5, 1))
    assert variant.ks(32) == (16, 22, 26, 29, 32)
    assert variant.ks(5) == (1, 2, 3, 4, 5)
    assert variant.sizes(5120) == (320, 640, 1280, 2560, 5120)


def test_validation_of_a_phase_is_of_the_latents_so_far(planted, tmp_path):
    t = trainer(planted, tmp_path / "c", PROGRESSIVE)
    result = run(t)
    by_phase = [row["validation_nmse"] for row in result.history if row["validation_nmse"] is not None]
    assert by_phase[-1] < by_phase[0]
    assert result.best_step > t.schedule.phases[-1].first_step
    batches = [Batch(b.x, b.y) for b in ordered_batches(planted, EVERYTHING, 10_000, DEVICE)]
    model = t.model.requires_grad_(False)
    error = sum(float((model(x) - y).double().square().sum()) for x, y in batches)
    tokens = sum(len(x) for x, _ in batches)
    assert by_phase[-1] == pytest.approx(error / tokens / 16 / model.config.output_scale**2, rel=1e-6)
