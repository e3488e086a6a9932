from benchmarks.hierarchy import VARIANTS, recovery, train, world


def test_nested_training_recovers_a_planted_hierarchy_better_than_plain():
    planted = world(12_000, seed=0)
    plain, joint, progressive = (
        recovery(train(VARIANTS[name], planted, 0, epochs=10), planted) for name in ("topk", "joint", "progressive")
    )
    assert plain.parents > 0.9
    for nested in (joint, progressive):
        assert nested.parents > plain.parents
        assert nested.children > plain.children + 0.03
