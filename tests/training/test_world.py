"""The synthetic world of the benchmarks has the law that it claims, and its scores are right where that is known."""

import pytest
import torch

from benchmarks.world import Scores, Shape, World, draw, rows_of, scores, train, untrained, world_of
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.training.settings import TrainSettings, VariantSettings

SMALL = Shape(d=64, trees=4, children=2, levels=3, alone=12, mean_l0=4.0, rank=3)


@pytest.fixture(scope="module")
def world() -> World:
    return world_of(SMALL, seed=0)


def orthogonal(world: World) -> World:
    """The same world with room for every feature."""
    return world._replace(x=torch.eye(len(world.depth), 64), y=torch.eye(len(world.depth), 64).flip(1))


def by_hand(world: World, absorbing: bool = False, hedging: float = 0.0) -> Transcoder:
    """A dictionary with a latent for each feature.

    An absorbing one's parents are silent beside a child, whose rows hold them too; a hedging one's parents' rows hold
    so much of each child.
    """
    features = len(world.depth)
    model = Transcoder(TranscoderConfig(d_in=64, d_out=64, d_hidden=features, k=1, encoder="relu"))
    model.W_enc.data, model.W_dec.data = world.x.clone(), world.y.clone()
    model.b_enc.data.fill_(-0.5)
    for level in (1, 2):
        parents, children = world.parents_of(level), world.children_of(level)
        if absorbing:
            model.W_enc.data[parents] -= 2 * world.x[children].unflatten(0, (-1, SMALL.children)).sum(1)
            model.W_dec.data[children] += world.y[parents].repeat_interleave(SMALL.children, 0)
        model.W_dec.data[parents] += hedging * world.y[children].unflatten(0, (-1, SMALL.children)).sum(1)
    return model.requires_grad_(False)


def test_rates_trees_and_sparsity_are_as_the_shape_says(world: World) -> None:
    fires = world.activations(40_000, 0) > 0
    assert fires.sum(1).float().mean() == pytest.approx(SMALL.mean_l0, rel=0.1)
    for level in (1, 2):
        parents, children = fires[:, world.parents_of(level)], fires[:, world.children_of(level)]
        of_parent = children.unflatten(1, (-1, SMALL.children)).sum(2)
        assert of_parent.max() == 1
        assert not of_parent[~parents].any()
        assert of_parent[parents].float().mean() == pytest.approx(SMALL.with_child, abs=0.03)
    assert torch.equal(world.activations(100, 7), world.activations(100, 7))
    assert not torch.equal(world.activations(100, 7), world.activations(100, 8))


def test_firings_are_correlated_across_trees(world: World) -> None:
    fires = (world.activations(40_000, 0) > 0)[:, : SMALL.trees + SMALL.alone].float()
    independent = (world._replace(causes=0 * world.causes).activations(40_000, 0) > 0)[:, : len(fires[0])].float()
    found, chance = (torch.corrcoef(part.T).fill_diagonal_(0).abs().max() for part in (fires, independent))
    assert found > 3 * chance


def test_a_dictionary_of_the_features_scores_1_and_those_that_absorb_and_hedge_are_seen(world: World) -> None:
    known = orthogonal(world)
    perfect = scores(by_hand(known), known, tokens=20_480)
    expected = Scores(perfect.nmse, SMALL.mean_l0, 1, 1, 1, 1, absorption=0, contamination=0, hedging=0, f1=1, unique=1)
    assert perfect._replace(l0=SMALL.mean_l0) == pytest.approx(expected, abs=1e-3)
    assert perfect.l0 == pytest.approx(SMALL.mean_l0, rel=0.1)
    absorbing = scores(by_hand(known, absorbing=True), known, tokens=20_480)
    assert absorbing.absorption == pytest.approx(1, abs=1e-3)
    assert absorbing.contamination == pytest.approx(0.5**0.5, abs=1e-3)
    hedging = scores(by_hand(known, hedging=0.5), known, tokens=20_480)
    assert hedging.hedging == pytest.approx((2 * 0.5**2) ** 0.5 / (1 + 2 * 0.5**2) ** 0.5, abs=1e-3)


def test_training_finds_features(world: World) -> None:
    settings = TrainSettings(d_hidden=48, k=4, epochs=1, batch_size=256, learning_rate=3e-3, dead_after_tokens=5000)
    start = scores(untrained(world, settings, seed=0), world, tokens=8192)
    trained = scores(train(world, settings, VariantSettings(), 60_000, seed=0), world, tokens=8192)
    assert trained.alone > start.alone + 0.1
    assert trained.nmse < 0.3
    assert trained.alone > 0.9
    assert trained.f1 > 0.4
    assert trained.absorption > 0.05  # fewer latents are active than features of a tree fire


FOUND = Scores(*(0.2, 4.0, 0.9, 0.6, 0.3, 0.8), absorption=0.1, contamination=0.4, hedging=0.05, f1=0.5, unique=0.7)


def test_the_figure_shows_every_seed_by_depth_and_by_error() -> None:
    depths, errors = draw({"topk": [FOUND, FOUND], "plt": [FOUND._replace(leaves=0.4)]}).axes
    assert [line.get_ydata()[2] for line in depths.lines] == [0.3, 0.3, 0.4]
    assert [line.get_xydata()[0].tolist() for line in errors.lines] == [[0.2, 0.4]] * 3


def test_rows_hold_differences_to_the_plain_way_and_mark_those_whose_interval_excludes_0() -> None:
    plain = [FOUND._replace(leaves=leaves) for leaves in (0.3, 0.4, 0.5)]
    better = [of._replace(leaves=of.leaves + gain) for of, gain in zip(plain, (0.10, 0.11, 0.12), strict=True)]
    start = [FOUND._replace(hedging=float("nan"))]
    rows = {row.split("|")[1].strip(): row for row in rows_of(start, {"topk": plain, "plt": better})}
    assert rows["hedging"].startswith("| hedging | – |")
    assert rows["leaves"] == "| leaves | 0.300 ± 0.000 | 0.400 ± 0.100 | **+0.110 [0.085, 0.135]** |"
    assert rows["F1"].endswith("| +0.000 [0.000, 0.000] |")
