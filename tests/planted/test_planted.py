"""Families of features planted into activations: who fires, what is added, and what is measured of dictionaries."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from tests_support import make_store

from transcoders.core.errors import UserError
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.predictors import Moments
from transcoders.planted.controls import absorbing, feature_tokens, made_by_hand
from transcoders.planted.families import PARENT, Families, plant
from transcoders.planted.kinds import Kind
from transcoders.planted.measure import measure
from transcoders.planted.settings import FamilySettings
from transcoders.planted.store import PlantedStore

D = 64
FEW = FamilySettings(nested=6, controls=2, children=3, components=4, lowest_rate=0.02, highest_rate=0.1)


def isotropic(d: int) -> Moments:
    """Moments of tokens without any direction of their own."""
    zero, one = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    return Moments(zero, zero, one, one, one)


@pytest.fixture
def families() -> Families:
    return plant(isotropic(D), length=2.0, settings=FEW)


def fires(families: Families, start: int, stop: int, draw: int = 0) -> torch.Tensor:
    """[rows, families, members]: who fires."""
    firings = families.firings(np.arange(start, stop), draw)
    result = torch.zeros(stop - start, len(families.rate), families.members, dtype=torch.bool)
    result[firings.row, firings.family, firings.member] = True
    return result


def test_parents_fire_at_their_rate_and_mostly_with_exactly_one_child(families) -> None:
    on = fires(families, 0, 60_000)
    parent, children = on[:, :, PARENT], on[:, :, 1:].sum(2)
    rate = parent.double().mean(0)
    assert ((rate - families.rate).abs() < 5 * (families.rate / 60_000).sqrt()).all()
    nested = families.kind != Kind.INDEPENDENT
    with_parent = children[:, nested][parent[:, nested]]
    assert set(with_parent.tolist()) == {0, 1}
    assert float(with_parent.double().mean()) == pytest.approx(FEW.with_child, abs=0.02)
    assert not children[:, nested][~parent[:, nested]].any()
    among = on[:, nested][:, :, 1:].sum((0, 1)).double()
    assert (among / among.sum() - 1 / FEW.children).abs().max() < 0.02


def test_children_of_the_independent_control_fire_as_often_whatever_their_parent_does(families) -> None:
    on = fires(families, 0, 200_000)[:, families.kind == Kind.INDEPENDENT]
    parent, child = on[:, :, PARENT], on[:, :, 1:].any(2)
    given_parent = (parent & child).sum(0) / parent.sum(0)
    assert (given_parent - child.double().mean(0)).abs().max() < 0.02
    expected = families.rate[families.kind == Kind.INDEPENDENT] * FEW.with_child
    assert torch.allclose(on[:, :, 1:].sum(2).double().mean(0), expected, rtol=0.1)


def test_a_row_has_the_same_firings_however_the_store_is_read(families) -> None:
    at_once = families.firings(np.arange(100, 300))
    pieces = [families.firings(np.arange(start, start + 50)) for start in range(100, 300, 50)]
    rows = torch.cat([piece.row + 50 * i for i, piece in enumerate(pieces)])
    assert torch.equal(at_once.row, rows)
    assert torch.equal(at_once.activation, torch.cat([piece.activation for piece in pieces]))
    assert ((at_once.activation >= 1 - FEW.spread) & (at_once.activation <= 1 + FEW.spread)).all()
    assert not torch.equal(fires(families, 100, 300), fires(families, 100, 300, draw=1))


def test_features_are_orthogonal_to_each_other_and_to_the_first_components_and_separable() -> None:
    scale = torch.linspace(0.5, 9, D, dtype=torch.float64)
    covariance = scale.square().diag()
    moments = isotropic(D)._replace(xx=covariance, yy=covariance)
    planted = plant(moments, length=2.0, settings=FEW)
    real = planted.kind != Kind.CHILDLESS
    for features in (planted.x, planted.y):
        unit = torch.nn.functional.normalize(features[real].flatten(0, 1), dim=-1)
        assert torch.allclose(unit @ unit.T, torch.eye(len(unit)), atol=1e-5)
        assert unit[:, -FEW.components :].abs().max() < 1e-5
    assert torch.allclose(planted.y[real].norm(dim=-1), torch.tensor(2.0))
    assert not planted.x[~real][:, 1:].any()
    assert planted.x[~real][:, PARENT].any()
    generator = np.random.default_rng(0)
    feature = planted.x[0, 1].double().numpy()
    noise = generator.standard_normal((2, 20_000, D)) * scale.numpy() @ feature
    signal = (1 - FEW.spread) * feature @ feature
    separation = signal / noise.std()
    assert norm.cdf(separation / math.sqrt(2)) == pytest.approx(FEW.detectable, abs=2e-3)


def test_more_families_than_dimensions_allow_are_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"families.nested: 64 families .* need 480 .* d_model = 64 has 0"):
        plant(isotropic(D), 1.0, FamilySettings())


def test_a_planted_store_differs_from_the_store_by_what_fires_and_nothing_else(tmp_path, families) -> None:
    make_store(tmp_path / "store", *torch.randn(2, 5000, D, generator=torch.Generator().manual_seed(0)))
    planted = PlantedStore(tmp_path / "store", families, FEW.model_dump())
    plain = PlantedStore(tmp_path / "store", families._replace(x=0 * families.x, y=0 * families.y), {})
    for name, features in (("mlp_in", families.x), ("mlp_out", families.y)):
        for start, stop in ((0, 4096), (4096, 5000)):
            added = planted.rows(name, start, stop) - plain.rows(name, start, stop)
            assert not added[~fires(families, start, stop).any(2).any(1)].any()
            first = families.firings(np.arange(start, stop))
            expected = torch.zeros_like(added).index_add(0, first.row, first.written(features))
            assert torch.allclose(added, expected, atol=1e-5)


# Dictionaries built by hand, on tokens that hold nothing but features: what is measured is known.
CLEAN = FamilySettings(nested=8, controls=2, children=4, components=0, lowest_rate=0.05, highest_rate=0.1, spread=0)


@pytest.fixture(scope="module")
def clean() -> Families:
    return plant(isotropic(60), length=1.0, settings=CLEAN)


def measured(families: Families, model: Transcoder) -> dict[Kind, pd.DataFrame]:
    table = measure(model, iter([feature_tokens(families, 8000)]), families)
    return {kind: table[table["kind"] == kind] for kind in Kind}


def test_an_absorbing_dictionary_absorbs_all_and_a_clean_one_nothing(clean) -> None:
    greedy, honest = measured(clean, absorbing(clean)), measured(clean, made_by_hand(clean))
    assert greedy[Kind.NESTED]["found"].all()
    assert honest[Kind.NESTED]["found"].all()
    assert (greedy[Kind.NESTED]["absorption"] == 1).all()
    assert greedy[Kind.NESTED]["contamination"].to_numpy() == pytest.approx(0.5**0.5, abs=1e-5)
    for kind in Kind:
        assert (honest[kind]["absorption"] == 0).all()
        assert not honest[kind]["lost"].any()
        assert (honest[kind]["splitting"] == 0).all()
    assert honest[Kind.NESTED]["contamination"].to_numpy() == pytest.approx(0, abs=1e-5)
    # Names without a direction absorb nothing, whatever the dictionary is.
    assert (greedy[Kind.CHILDLESS]["absorption"] == 0).all()


def split(families: Families) -> Transcoder:
    """Every parent has two latents, which fire alike."""
    single = made_by_hand(families)
    rows = torch.cat([torch.arange(single.config.d_hidden), torch.arange(0, single.config.d_hidden, families.members)])
    model = Transcoder(single.config.model_copy(update={"d_hidden": len(rows)}))
    for name in ("W_enc", "b_enc", "W_dec"):
        getattr(model, name).data = getattr(single, name).data[rows]
    return model


def test_split_hedged_and_lost_parents_are_found_at_their_values(clean) -> None:
    assert (measured(clean, split(clean))[Kind.NESTED]["splitting"] == 1).all()
    hedged = measured(clean, made_by_hand(clean, hedged=0.4))[Kind.NESTED]
    assert hedged["hedging"].to_numpy() == pytest.approx(0.8 / math.sqrt(1 + 4 * 0.16), abs=1e-5)
    lost = measured(clean, made_by_hand(clean, hedged=0.8))[Kind.NESTED]
    assert lost["lost"].all()
    assert lost["absorption"].isna().all()


def test_nothing_is_found_in_a_dictionary_of_random_directions(clean) -> None:
    generator = torch.Generator().manual_seed(0)
    model = made_by_hand(clean)
    model.W_dec.data = torch.nn.functional.normalize(torch.randn(model.W_dec.shape, generator=generator), dim=-1)
    table = measure(model, iter([feature_tokens(clean, 2000)]), clean)
    assert not table["found"].any()
    assert not table["lost"].any()
    assert table["absorption"].isna().all()
