"""The synthetic world of the benchmarks has the law that it claims, and its scores are right where that is known."""

import pytest
import torch

from benchmarks.world import Scores, Shape, World, draw, scores, train, world_of
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


def by_hand(world: World, absorbing: bool) -> Transcoder:
    """A dictionary with a latent for each feature; an absorbing one's parents are silent beside a child."""
    features = len(world.depth)
    model = Transcoder(TranscoderConfig(d_in=64, d_out=64, d_hidden=features, k=1, encoder="relu"))
    model.W_enc.data, model.W_dec.data = world.x.clone(), world.y.clone()
    model.b_enc.data.fill_(-0.5)
    if absorbing:
        for level in (1, 2):
            children = world.x[world.children_of(level)].unflatten(0, (-1, SMALL.children)).sum(1)
            model.W_enc.data[world.parents_of(level)] -= 2 * children
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


def test_a_dictionary_of_the_features_scores_1_and_one_that_absorbs_is_seen(world: World) -> None:
    known = orthogonal(world)
    perfect = scores(by_hand(known, absorbing=False), known, tokens=20_480)
    expected = Scores(perfect.nmse, 1, 1, 1, 1, 0, 1, 1)
    assert perfect == pytest.approx(expected, abs=1e-3)
    absorbing = scores(by_hand(known, absorbing=True), known, tokens=20_480)
    assert absorbing.absorption == pytest.approx(1, abs=1e-3)


def test_training_finds_features(world: World) -> None:
    settings = TrainSettings(d_hidden=48, k=4, epochs=1, batch_size=256, learning_rate=3e-3, dead_after_tokens=5000)
    trained = scores(train(world, settings, VariantSettings(), 60_000, seed=0), world, tokens=8192)
    assert trained.nmse < 0.3
    assert trained.alone > 0.9
    assert trained.f1 > 0.4
    assert trained.absorption > 0.05  # fewer latents are active than features of a tree fire


def test_the_figure_shows_every_seed_by_depth_and_by_error() -> None:
    found = Scores(nmse=0.2, roots=0.9, children=0.6, leaves=0.3, alone=0.8, absorption=0.1, f1=0.5, unique=0.7)
    depths, errors = draw({"topk": [found, found], "plt": [found._replace(leaves=0.4)]}).axes
    assert [line.get_ydata()[2] for line in depths.lines] == [0.3, 0.3, 0.4]
    assert [line.get_xydata()[0].tolist() for line in errors.lines] == [[0.2, 0.1]] * 3
