"""Word classes: which tokens are words, probes against scikit-learn, and dictionaries made to split and to absorb."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.functional import one_hot
from transformers import PreTrainedTokenizerFast

from transcoders.activations.reader import LabelledBatch
from transcoders.classes.judge import ClassRun, judge, verdicts
from transcoders.classes.latents import activity
from transcoders.classes.measure import measure, probe_classes
from transcoders.classes.probes import Half, directions, mean_auroc, random_class, read_outputs
from transcoders.classes.settings import ClassSettings
from transcoders.classes.words import NO_WORD, Words, classes_among, find_words, read_table
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.probing.probes import labels_of_words, mean_auc, parts_of, scores
from transcoders.training.settings import VariantSettings

CLASSES, EACH, REST = 12, 8, 100
"""Classes, words of each, and words of none."""
WORDS = CLASSES * EACH + REST
OF_CLASS = np.arange(WORDS) // EACH
NESTED = VariantSettings(prefixes=(0.5, 1.0), prefix_k=(0.5, 1.0))
SETTINGS = ClassSettings(halves=4, others=2000, bootstrap=200)


@pytest.fixture(scope="module")
def text() -> tuple[Words, list[LabelledBatch], dict[str, np.ndarray]]:
    """Tokens that are one of the words each; x says which, and y the class and, more faintly, the word."""
    at = np.random.default_rng(0).integers(WORDS, size=8000)
    words = Words([f"w{n}" for n in range(WORDS)], at, np.bincount(at, minlength=WORDS))
    x = one_hot(torch.from_numpy(at), WORDS).float()
    y = x @ outputs_of_words() + 0.05 * torch.randn(len(x), CLASSES + WORDS, generator=torch.Generator().manual_seed(0))
    parts = [LabelledBatch(x[s : s + 3000], y[s : s + 3000], at, at) for s in (0, 3000, 6000)]
    members = {f"class {n}": np.flatnonzero(n == OF_CLASS) for n in range(CLASSES)}
    return words, parts, members


def outputs_of_words() -> torch.Tensor:
    of_class = one_hot(torch.from_numpy(np.minimum(OF_CLASS, CLASSES)), CLASSES + 1)[:, :CLASSES].float()
    return torch.cat([of_class, 0.3 * torch.eye(WORDS)], dim=1)


def dictionary(fires_on: np.ndarray, decoder: torch.Tensor) -> Transcoder:
    """Latents [latents, words] that fire with 1 on the words that they are given."""
    model = Transcoder(
        TranscoderConfig(d_in=WORDS, d_out=decoder.shape[1], d_hidden=len(fires_on), k=1, encoder="relu")
    )
    model.W_enc.data = torch.from_numpy(fires_on).float()
    model.W_dec.data = decoder
    return model.requires_grad_(False)


def made(kind: str) -> Transcoder:
    """A dictionary that is clean, split into single words, or absorbs the first three words of each class."""
    written = outputs_of_words()
    classes = np.equal(np.arange(CLASSES)[:, None], OF_CLASS)
    of_class = torch.cat([torch.eye(CLASSES), torch.zeros(CLASSES, WORDS)], dim=1)
    if kind == "clean":
        return dictionary(classes, of_class)
    if kind == "split":
        return dictionary(np.eye(WORDS), written)
    absorbed = np.arange(WORDS) % EACH < 3
    own = np.flatnonzero(absorbed & (OF_CLASS < CLASSES))
    return dictionary(np.concatenate([classes & ~absorbed, np.eye(WORDS)[own]]), torch.cat([of_class, written[own]]))


def measured(kind: str, text, **changes) -> ClassRun:
    words, parts, members = text
    rng = np.random.default_rng(0)
    outputs = read_outputs(parts, words, SETTINGS.others, rng)
    probed = probe_classes(changes.get("members", members), words, outputs, SETTINGS, rng)
    active = activity(made(kind), parts, words)
    return ClassRun(measure(active, made(kind).W_dec, probed, words), active.l0)


def test_a_token_is_a_word_if_it_begins_one_and_nothing_goes_on_with_it() -> None:
    vocabulary = ["▁red", "▁May", "▁may", "be", "s", ".", "▁9", "▁dog", "red"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({v: i for i, v in enumerate(vocabulary)})))
    sentence = ["▁red", "▁may", "be", "▁dog", "s", "▁dog", ".", "red", "▁May", "▁9", "▁red", "▁dog"]
    tokens = np.array([vocabulary.index(piece) for piece in [*sentence, "be"]])
    documents = np.array([0] * len(sentence) + [1])  # the next document does not go on with the last word of this one
    words = find_words(tokens, documents, tokenizer, occurrences=1)
    found = [words.texts[n] if n != NO_WORD else "" for n in words.at]
    assert found == ["red", "", "", "", "", "dog", "", "", "May", "", "red", "dog", ""]
    assert dict(zip(words.texts, words.counts.tolist(), strict=True)) == {"red": 2, "May": 1, "dog": 2}
    often = find_words(tokens, documents, tokenizer, occurrences=2)
    assert often.texts == ["red", "dog"]
    assert (often.at == NO_WORD).sum() == len(tokens) - 4
    assert list(classes_among(words, {"colour": ["red", "blue"], "animal": ["dog"]}, members=1)) == ["colour", "animal"]
    assert classes_among(words, {"colour": ["red", "blue"]}, members=2) == {}


def test_the_table_has_each_word_in_one_class_and_enough_of_them() -> None:
    table = read_table()
    words = [word for of in table.values() for word in of]
    assert len(words) == len(set(words))
    assert len(table) >= 30
    assert all(len(of) >= 8 and all(word.isalpha() for word in of) for of in table.values())


def test_probes_tell_unseen_words_of_their_class_as_scikit_learn_counts_it(text) -> None:
    words, parts, members = text
    outputs = read_outputs(parts, words, 2000, np.random.default_rng(0))
    half = Half(members["class 3"][:4], members["class 3"][4:])
    probe = directions(outputs, [half], words.counts)
    y = torch.cat([part.y for part in parts])
    covariance = torch.cov(y.double().T, correction=0)
    mean = y[np.isin(words.at, half.learn)].double().mean(0) - y.double().mean(0)
    expected = torch.linalg.solve(covariance + 1e-3 * covariance.diagonal().mean() * torch.eye(len(mean)), mean)
    assert torch.nn.functional.cosine_similarity(probe[0].double(), expected, dim=0) > 1 - 1e-6
    chosen = np.concatenate([np.flatnonzero(np.isin(outputs.word, half.judge)), outputs.sample])
    chosen = chosen[~(np.isin(outputs.word[chosen], half.members) & (np.arange(len(chosen)) >= len(chosen) - 2000))]
    labels = np.isin(outputs.word[chosen], half.judge)
    auroc = mean_auroc(outputs, [half], probe)
    assert auroc == pytest.approx(roc_auc_score(labels, (outputs.y[chosen] @ probe[0]).numpy()))
    assert auroc > 0.99


def test_random_classes_are_as_frequent_and_share_no_word() -> None:
    counts = np.random.default_rng(0).integers(5, 500, size=300)
    members = np.arange(40)
    chosen = random_class(members, counts, np.random.default_rng(1))
    assert len(set(chosen.tolist())) == len(members)
    assert not set(chosen.tolist()) & set(members.tolist())
    assert np.abs(np.sort(counts[chosen]) - np.sort(counts[members])).mean() < 0.1 * counts.mean()


def test_made_dictionaries_are_measured_as_what_they_were_made_to_be(text) -> None:
    clean, split, absorbing = (measured(kind, text).classes for kind in ("clean", "split", "absorbing"))
    assert clean["generality"].to_numpy() == pytest.approx(1)
    assert not clean["own"].any()
    assert clean["absorption"].isna().all()
    assert split["generality"].to_numpy() == pytest.approx(0)
    assert split["absorption"].isna().all()  # every word has a latent: none is left to have a parent
    assert absorbing["absorption"].to_numpy() == pytest.approx(1, abs=0.02)
    assert absorbing["own"].mean() == pytest.approx(3 / 8, abs=0.06)
    for table in (clean, split, absorbing):
        assert (table["auroc"] > 0.99).all()
        assert table["generality_by_chance"].mean() < 0.3


def test_words_dealt_anew_have_neither_probe_nor_parent(text) -> None:
    dealt = np.random.default_rng(1).permutation(CLASSES * EACH).reshape(CLASSES, EACH)
    table = measured("clean", text, members={f"class {n}": dealt[n] for n in range(CLASSES)}).classes
    assert table["auroc"].mean() < 0.7
    assert table["generality"].mean() < 0.4


def test_verdicts_are_of_classes_that_both_have_and_flip_with_the_sides(text) -> None:
    clean, split, absorbing = ({s: measured(kind, text) for s in (0, 1)} for kind in ("clean", "split", "absorbing"))
    loose = SETTINGS.model_copy(update={"chance_auroc": 0.9})

    def of(ours: dict[int, ClassRun], theirs: dict[int, ClassRun]) -> pd.DataFrame:
        same = {seed: run._replace(l0=1.0) for seed, run in ours.items()}
        return pd.DataFrame(judge(same, {s: r._replace(l0=1.0) for s, r in theirs.items()}, loose)).set_index(
            "hypothesis"
        )

    assert of(clean, split).loc["H2", "verdict"] == "supported"
    assert of(split, clean).loc["H2", "verdict"] == "refuted"
    assert of(split, clean).loc["H1", "note"] == f"0 of {CLASSES} classes have a parent in both"
    less = {s: run._replace(classes=run.classes.assign(absorption=0.2)) for s, run in absorbing.items()}
    for ours, theirs, verdict in ((less, absorbing, "supported"), (absorbing, less, "refuted")):
        row = of(ours, theirs).loc["H1"]
        assert (row["verdict"], row["seeds"], row["note"]) == (verdict, 2, "")
        assert abs(row["effect"]) == pytest.approx(0.8, abs=0.02)
    assert of(clean, clean).loc["H2", ["effect", "low", "high"]].tolist() == [0, 0, 0]
    table = verdicts({"topk": split, "nested": clean}, {"topk": VariantSettings(), "nested": NESTED}, 9, SETTINGS)
    assert table["note"].str.startswith("L0 differs").all()
    assert set(table["verdict"]) == {"undecided"}
    assert verdicts({}, {"topk": VariantSettings()}, 9, SETTINGS).empty


@pytest.mark.parametrize(("kind", "expected"), [("clean", 1.0), ("split", 0.5), ("absorbing", 1 - 3 / 8 / 2)])
def test_one_latent_tells_unseen_words_of_a_class_as_far_as_it_stands_for_the_class(text, kind, expected) -> None:
    """Of words that fire no latent of the class, half are taken for members: latents of single words tell no other."""
    words, parts, members = text
    labels = labels_of_words(members, 5)
    means = activity(made(kind), parts, words).means(words.counts)[labels.items].numpy()
    shuffled = np.random.default_rng(0).permutation(labels.of)
    for k in (1, 2):
        assert auc(means, labels.of, k) == pytest.approx(expected, abs=0.01)
        assert auc(means, shuffled, k) == pytest.approx(0.5, abs=0.08)


def auc(means: np.ndarray, of: np.ndarray, k: int) -> float:
    parts = parts_of(of, folds=5, seed=0)
    return float(mean_auc(scores(means, of, parts, [k])[0], of, parts, np.ones((1, len(of))))[0])


def test_mean_activations_of_words_are_those_of_their_tokens(text) -> None:
    words, parts, _ = text
    torch.testing.assert_close(activity(made("split"), parts, words).means(words.counts), torch.eye(WORDS))


def test_classes_with_fewer_words_than_parts_are_not_probed() -> None:
    classes = {"few": np.arange(3), "some": np.arange(3, 9), "more": np.arange(9, 14)}
    labels = labels_of_words(classes, 5)
    assert labels.names == ["some", "more"]
    assert labels.items.tolist() == list(range(3, 14))
    assert labels.of.tolist() == [0] * 6 + [1] * 5
    assert labels_of_words(classes, 6).names == []
