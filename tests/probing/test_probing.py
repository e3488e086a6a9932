"""Probes of documents: against scikit-learn's AUC, and on features that are known to tell a topic."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from transcoders.activations.reader import LabelledBatch
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.probing.pooling import lengths, mean_latents, mean_outputs
from transcoders.probing.probes import Labels, labels_of_topics, mean_auc, parts_of, scores
from transcoders.probing.settings import ProbingSettings
from transcoders.probing.table import table_of

CLASSES, EACH = 3, 40
OF = np.arange(CLASSES * EACH) % CLASSES
LABELS = Labels(np.arange(len(OF)), OF, ["a", "b", "c"])
SETTINGS = ProbingSettings(bootstrap=200)


def features(telling: int, noise: int = 50) -> np.ndarray:
    """A document's latents: ``telling`` of each class fire on their share of its documents, others at random."""
    rng = np.random.default_rng(0)
    share = rng.integers(telling, size=len(OF))
    known = [np.equal(OF, number) & (share == part) for number in range(CLASSES) for part in range(telling)]
    return np.stack([*known, *(rng.random((noise, len(OF))) < 0.3)], axis=1).astype(np.float32)


def test_the_auc_is_scikit_learns_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    judged = rng.integers(8, size=(CLASSES, len(OF))).astype(float)
    weights = np.stack([np.ones(len(OF)), rng.integers(3, size=len(OF))])
    expected = [
        np.mean([roc_auc_score(np.equal(OF, number), row, sample_weight=weight) for number, row in enumerate(judged)])
        for weight in weights
    ]
    assert mean_auc(judged, OF, np.zeros_like(OF), weights) == pytest.approx(expected)


def test_scores_compare_within_a_part_alone() -> None:
    parts, ones = np.arange(len(OF)) // CLASSES % 2, np.ones((1, len(OF)))
    rng = np.random.default_rng(0)
    judged = rng.random((CLASSES, len(OF)))
    assert mean_auc(judged + 10 * parts, OF, parts, ones) == pytest.approx(mean_auc(judged, OF, parts, ones))
    of_parts = [
        mean_auc(judged[:, parts == n], OF[parts == n], 0 * OF[parts == n], ones[:, parts == n]) for n in (0, 1)
    ]
    assert mean_auc(judged, OF, parts, ones) == pytest.approx(np.mean(of_parts))


def test_one_latent_tells_a_topic_that_is_its_own_and_half_of_one_that_is_split() -> None:
    def auc(values: np.ndarray, k: int | None) -> float:
        parts = parts_of(OF, folds=5, seed=0)
        return float(mean_auc(scores(values, OF, parts, [k])[0], OF, parts, np.ones((1, len(OF))))[0])

    assert auc(features(1), 1) == 1
    assert auc(features(2), 1) == pytest.approx(0.75, abs=0.08)  # half of the members above all others, half tied
    assert auc(features(2), 2) == 1
    assert auc(features(1)[:, CLASSES:], 1) == pytest.approx(0.5, abs=0.1)
    assert auc(features(2), None) > 0.95


def test_a_table_holds_differences_to_the_plain_run_and_labels_that_mean_nothing() -> None:
    read = iter([("plain", features(2), [1, 2]), ("nested", features(1), [1, 2])])
    table = table_of(read, {"plain": "plain", "nested": "plain"}, LABELS, SETTINGS).set_index(["name", "k"])
    gain = table.loc[("nested", 1)]
    assert gain["difference"] == pytest.approx(gain["auc"] - table.loc[("plain", 1), "auc"])
    assert 0 < gain["difference_low"] < gain["difference"] < gain["difference_high"]
    assert np.isnan(table.loc[("plain", 1), "difference"])
    assert (table["low"] <= table["auc"]).all()
    assert table["shuffled"].to_numpy() == pytest.approx(0.5, abs=0.12)
    assert set(table["items"]) == {len(OF)}


def test_topics_need_documents_with_tokens() -> None:
    topics = ["Art"] * 12 + ["Sport"] * 12 + ["rare"] * 3 + [""] * 20
    tokens = np.ones(len(topics), np.int64)
    labels = labels_of_topics(topics, tokens, 10)
    assert labels.names == ["Art", "Sport"]
    assert labels.items.tolist() == list(range(24))
    assert labels.of.tolist() == [0] * 12 + [1] * 12
    tokens[:5] = 0
    nothing = labels_of_topics(topics, tokens, 10)
    assert nothing.names == []
    assert len(table_of(iter(()), {}, nothing, SETTINGS)) == 0


def test_means_over_a_document_are_those_of_dense_latents() -> None:
    torch.manual_seed(0)
    model = Transcoder(TranscoderConfig(d_in=6, d_out=6, d_hidden=20, k=3))
    torch.nn.init.normal_(model.W_enc)
    x, y = torch.randn(2, 30, 6)
    document = np.repeat([0, 2, 3], 10).astype(np.int32)
    batches = [
        LabelledBatch(x[part], y[part], document[part], document[part]) for part in (slice(0, 13), slice(13, 30))
    ]
    tokens = lengths(batches, 4)
    assert tokens.tolist() == [10, 0, 10, 10]
    dense = model.encode(x).dense().detach()
    expected = torch.stack([dense[:10].mean(0), torch.zeros(20), dense[10:20].mean(0), dense[20:].mean(0)])
    torch.testing.assert_close(mean_latents(model, batches, tokens), expected)
    torch.testing.assert_close(mean_outputs(batches, tokens, 6)[2], y[10:20].mean(0))
