"""Absorption and splitting, on dictionaries of which they are known."""

import string
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from transcoders.absorption.dictionary import Dictionary, dictionary_of
from transcoders.absorption.measure import absorption, readable_categories, skip_alone
from transcoders.absorption.prompts import HYPERNYMS, categories_of, task_prompts, words_of_task
from transcoders.absorption.redundancy import near_parallel_pairs, redundancy
from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.shares import Along, carried
from transcoders.absorption.suite import NO_CATEGORY, CategoryTask, compared
from transcoders.absorption.words import (
    NO_TASK,
    Probes,
    Task,
    fit_probes,
    load_task,
    read_words,
    save_task,
)
from transcoders.classes.words import read_table
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.reconstruction import Prediction
from transcoders.evaluation.settings import EvaluateSettings
from transcoders.kernels.latents import from_fixed_k
from transcoders.language.model import load_bridge, load_tokenizer
from transcoders.language.settings import HookSettings
from transcoders.language.taps import resolve_tap

SETTINGS = AbsorptionSettings()
SAMPLING = EvaluateSettings(bootstrap=200)
LETTERS = "abcst"
TOPICS = 40
WORDS = 3000
STRENGTH = 8.0


class World:
    """Words with a first letter and a topic; x holds both, y = STRENGTH p_letter + STRENGTH e_topic + noise."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.letter = rng.integers(len(LETTERS), size=WORDS)
        self.topic = rng.integers(TOPICS, size=WORDS)
        basis = torch.eye(len(LETTERS) + TOPICS)
        self.p, self.e = basis[: len(LETTERS)], basis[len(LETTERS) :]
        x = torch.from_numpy(np.stack([self.letter, self.topic, np.arange(WORDS)], 1)).float()
        noise = torch.from_numpy(rng.normal(size=(WORDS, len(basis)))).float()
        y = STRENGTH * (self.p[self.letter] + self.e[self.topic]) + 0.3 * noise
        names = [f"{LETTERS[i]}{n}" for n, i in enumerate(self.letter)]
        self.task = Task(names, np.array([name[0] for name in names]), x, y, torch.arange(WORDS) < 1000)
        self.probes = fit_probes(self.task)


@pytest.fixture(scope="module")
def world():
    return World()


def dictionary(rows, active):
    """A dictionary with the given rows; ``active`` maps a row of x to {latent: value}."""

    def encode(x):
        dense = torch.zeros(len(x), len(rows))
        for i, row in enumerate(x.long().tolist()):
            for latent, value in active(*row).items():
                dense[i, latent] = value
        indices = torch.arange(len(rows)).expand(len(x), -1)
        return from_fixed_k(indices.int(), dense, len(rows))

    return Dictionary(encode, rows)


def clean(world):
    rows = torch.cat([world.p, world.e])
    return dictionary(rows, lambda letter, topic, _: {letter: STRENGTH, len(LETTERS) + topic: STRENGTH})


def planted(world, left=0.0):
    """In a quarter of the topics, words with s have a latent of their own, which does what the s latent should.

    The s latent keeps the share ``left`` of its value.
    """
    s = LETTERS.index("s")
    extra = world.e[:10] + (1 - left) * world.p[s]
    rows = torch.cat([world.p, world.e, extra])

    def active(letter, topic, _):
        if letter != s or topic >= 10:
            return {letter: STRENGTH, len(LETTERS) + topic: STRENGTH}
        return {s: left * STRENGTH, len(LETTERS) + TOPICS + topic: STRENGTH}

    return dictionary(rows, active)


def of_letter(result, letter):
    return result.categories.set_index("category").loc[letter]


def test_a_clean_dictionary_absorbs_nothing(world):
    result = absorption(clean(world), world.task, world.probes, SETTINGS, SAMPLING)
    for name in ("mean_absorption", "full_absorption", "splitting", "skip_share"):
        assert result.metrics[name] == result.metrics[f"{name}_high"] == 0
    assert result.metrics["categories"] == result.metrics["categories_with_latent"] == len(LETTERS)
    assert result.metrics["main_share"] > 0.9
    assert result.metrics["main_f1"] == 1
    assert [int(of_letter(result, letter)["main_latents"]) for letter in LETTERS] == list(range(len(LETTERS)))


def test_planted_absorption_is_found_where_it_is_and_nowhere_else(world):
    result = absorption(planted(world), world.task, world.probes, SETTINGS, SAMPLING)
    s = world.letter == LETTERS.index("s")
    judged = s & world.task.test.numpy()
    share = (world.topic[judged] < 10).mean()
    assert of_letter(result, "s")["mean_absorption"] == pytest.approx(share, abs=0.01)
    assert of_letter(result, "s")["full_absorption"] == pytest.approx(share, abs=0.01)
    assert (result.categories.set_index("category").drop(index="s")["mean_absorption"] == 0).all()
    overall = result.metrics["mean_absorption"]
    assert overall == pytest.approx(share / len(LETTERS), abs=0.01)
    assert 0 < result.metrics["mean_absorption_low"] < overall < result.metrics["mean_absorption_high"] < 2 * overall


def test_half_absorbed_counts_half_and_not_as_full(world):
    result = absorption(planted(world, left=0.5), world.task, world.probes, SETTINGS, SAMPLING)
    judged = (world.letter == LETTERS.index("s")) & world.task.test.numpy()
    share = (world.topic[judged] < 10).mean()
    assert of_letter(result, "s")["mean_absorption"] == pytest.approx(share / 2, rel=0.1)
    assert of_letter(result, "s")["full_absorption"] == 0


@pytest.mark.parametrize("parts", [2, 3])
def test_a_letter_split_over_latents_is_counted(world, parts):
    t = LETTERS.index("t")
    rows = torch.cat([world.p, world.e, world.p[t].expand(parts, -1)])

    def active(letter, topic, number):
        latent = len(LETTERS) + TOPICS + number % parts if letter == t else letter
        return {latent: STRENGTH, len(LETTERS) + topic: STRENGTH}

    result = absorption(dictionary(rows, active), world.task, world.probes, SETTINGS, SAMPLING)
    assert of_letter(result, "t")["splitting"] == parts - 1
    assert of_letter(result, "t")["mean_absorption"] == 0
    assert result.metrics["splitting"] == pytest.approx((parts - 1) / len(LETTERS))


def reference(values, main, cosines, lengths, total, settings):
    """SAEBench's definition word by word: (absorption fraction, fully absorbed)."""
    result = []
    for a, t in zip(values, total, strict=True):
        projection = a * cosines * lengths
        extra = sum(projection[i] for i in main)
        others = [p for i, p in enumerate(projection) if i not in main and cosines[i] >= settings.absorber_cosine]
        absorbers = sum(sorted((p for p in others if p > 0), reverse=True)[: settings.absorbers])
        if extra >= t or absorbers / t < settings.least_share:
            fraction = 0.0
        elif extra <= 0:
            fraction = 1.0
        else:
            fraction = min(absorbers, t - extra) / (min(absorbers, t - extra) + extra)
        top = int(np.argmax(projection))
        full = all(a[i] < 1e-8 for i in main) and cosines[top] >= settings.absorber_cosine and t >= 0
        result.append((fraction, bool(full and projection[top] / t >= settings.least_share)))
    return result


@pytest.mark.parametrize("seed", range(5))
def test_the_shares_are_those_of_the_published_formulas(seed):
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=(300, 25)) * (rng.random((300, 25)) < 0.3)
    cosines, lengths = rng.uniform(-0.5, 0.8, 25), rng.uniform(0.5, 2, 25)
    main = np.array([3, 8])
    total = (values * cosines * lengths).sum(1) + rng.normal(size=300)
    along = Along(cosines * lengths, cosines, total, np.zeros(300))
    result = carried(values, main, along, SETTINGS)
    expected = np.array(reference(values, main, cosines, lengths, total, SETTINGS))
    assert result.absorption == pytest.approx(expected[:, 0])
    assert result.full.tolist() == expected[:, 1].astype(bool).tolist()
    assert 0 < result.full.sum() < 300


def test_scales_and_the_skip_path_of_a_transcoder_are_counted(world):
    d_in, d_out = 3, world.task.y.shape[1]
    torch.manual_seed(0)
    model = Transcoder(
        TranscoderConfig(d_in=d_in, d_out=d_out, d_hidden=30, k=4, input_scale=50.0, output_scale=3.0, skip=True)
    )
    for value in model.parameters():
        value.data.normal_()
    model.requires_grad_(False)
    parts = dictionary_of(model)
    x = world.task.x
    y_hat = parts.encode(x).dense() @ parts.W_dec + parts.b_dec + parts.skip(x)
    assert torch.allclose(y_hat, model(x), atol=1e-5 * float(y_hat.abs().max()))


def test_a_map_without_latents_carries_everything_itself(world):
    result = skip_alone(lambda x: world.task.y, world.task, world.probes, SETTINGS, SAMPLING)
    assert result["skip_share"] > 0.99
    assert result["mean_absorption"] == result["full_absorption"] == 0


def test_letters_with_weak_probes_are_left_out_and_named(world):
    y = world.task.y.clone()
    y[:, LETTERS.index("a")] = 0  # nothing tells a from b any more, but that it is neither c, s nor t
    y[:, LETTERS.index("b")] = 0
    task = world.task._replace(y=y)
    result = absorption(clean(world), task, fit_probes(task), SETTINGS, SAMPLING)
    assert result.categories[~result.categories["kept"]]["category"].tolist() == ["a", "b"]
    assert result.metrics["categories"] == 3
    with pytest.raises(UserError, match=r"absorption\.least_probe_f1: 1\.0 leaves out every category; the best probe"):
        absorption(
            clean(world),
            task._replace(),
            fit_probes(world.task)._replace(f1=torch.full((5,), 0.7)),
            AbsorptionSettings(least_probe_f1=1.0),
            SAMPLING,
        )


def test_a_dictionary_of_dead_latents_is_an_error(world):
    dead = dictionary(torch.cat([world.p, world.e]), lambda *_: {})
    with pytest.raises(UserError, match=r"none of the 45 latents fires on any of 3000 words.*train longer"):
        absorption(dead, world.task, world.probes, SETTINGS, SAMPLING)


def test_too_few_words_for_a_probe_are_an_error(world):
    few = Task(
        world.task.words[:20], world.task.categories[:20], world.task.x[:20], world.task.y[:20], torch.arange(20) < 10
    )
    with pytest.raises(UserError, match=r"absorption\.words"):
        fit_probes(few)


def test_a_vocabulary_without_words_is_an_error():
    class Bytes:
        def __len__(self):
            return 256

        def convert_ids_to_tokens(self, ids):
            return [f"<0x{i:02X}>" for i in ids]

    with pytest.raises(
        UserError, match=r"model\.name: .*vocabulary of 256 has 0; choose a model .*absorption\.words: 0$"
    ):
        words_of_task(Bytes(), SETTINGS)


def test_the_task_can_be_left_out(tmp_path, caplog):
    save_task(tmp_path / "words.safetensors", *NO_TASK)
    task = CategoryTask(*load_task(tmp_path / "words.safetensors"), AbsorptionSettings(words=0), SAMPLING)
    assert task.of_transcoder(Transcoder(TranscoderConfig(d_in=3, d_out=3, d_hidden=8, k=2))) is None
    assert task.of_affine(lambda x, y: Prediction(x, None)) == NO_CATEGORY
    assert task.categories_left_out == ", ".join(string.ascii_lowercase)
    assert "absorption.words: 0 leaves the absorption task out" in caplog.text


@pytest.mark.parametrize("right", [1, 2, 5, 6, 7])
def test_a_letter_with_few_right_words_has_an_interval(world, right):
    """Resamples that draw none of them have no value, and count for nothing."""
    words = np.flatnonzero(world.task.test.numpy() & (world.task.categories == "s"))[:right]
    mask = torch.zeros_like(world.probes.right)
    mask[LETTERS.index("s"), words] = True
    f1 = torch.where(mask.any(1), 1.0, 0.0)
    metrics = absorption(clean(world), world.task, world.probes._replace(right=mask, f1=f1), SETTINGS, SAMPLING).metrics
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["words"] == right


def test_a_task_is_kept_in_a_file(world, tmp_path):
    save_task(tmp_path / "words.safetensors", world.task, world.probes)
    task, probes = load_task(tmp_path / "words.safetensors")
    assert task.words == world.task.words
    assert probes.categories == list(LETTERS)
    assert torch.equal(task.y, world.task.y)
    assert torch.equal(probes.direction, world.probes.direction)
    first = (tmp_path / "words.safetensors").read_bytes()
    save_task(tmp_path / "words.safetensors", task, probes)
    assert (tmp_path / "words.safetensors").read_bytes() == first
    (tmp_path / "words.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"words\.safetensors: not readable .* remove it and run"):
        load_task(tmp_path / "words.safetensors")


def test_words_are_read_where_they_stand_in_the_prompt(gemma):
    tokenizer = load_tokenizer(gemma)
    bridge = load_bridge(gemma, torch.device("cpu"))
    settings = AbsorptionSettings(words=60)
    task = read_words(bridge, resolve_tap(bridge, 0, HookSettings()), tokenizer, [2], settings)
    assert sorted(task.words) == sorted(word.text for word in words_of_task(tokenizer, settings))
    assert int(task.test.sum()) == 18
    assert task.x.shape == task.y.shape == (60, 640)
    words = words_of_task(tokenizer, settings)
    words = [words[i] for i in np.random.default_rng(0).permutation(60)]
    prompts = task_prompts(words, tokenizer, 0, [2], None)
    assert [row[i] for row, positions in prompts for i in positions] == [word.token for word in words]
    text = tokenizer.decode(prompts[0][0][1:])
    assert text.startswith(f" {text.split(':')[0].strip()}: {text.strip()[0].upper()}\n")
    last = torch.tensor([prompts[-1][0]])
    caught = {}
    name = resolve_tap(bridge, 0, HookSettings()).hook_out
    hook = (bridge.hook_dict[name].name, lambda value, hook: caught.update(y=value))
    with torch.inference_mode():
        bridge.run_with_hooks(last, fwd_hooks=[hook], return_type=None, use_cache=False)
    assert torch.allclose(caught["y"][0, -1], task.y[-1], atol=1e-3 * float(task.y[-1].norm()))


def test_near_parallel_rows_that_fire_together_are_redundant():
    rows = torch.tensor([[1.0, 0], [2.0, 0.01], [0, 1.0], [-1.0, 0]])
    assert near_parallel_pairs(rows, 0.9).tolist() == [[0, 1], [1, 0]]
    # latent 0 fires on every token, latent 1 on every second: P(1|0) = 1/2, P(0|1) = 1
    alike = dictionary(rows, lambda letter, topic, number: {0: 1.0, 1: float(number % 2), 2: 1.0})
    x = torch.arange(10.0)[:, None].expand(-1, 3)
    result = redundancy(alike, [SimpleNamespace(x=x), SimpleNamespace(x=x)], 0.9)
    assert result["cofiring"] == pytest.approx(0.75)
    assert result["near_parallel_fraction"] == 0.5
    assert result["near_parallel_pairs"] == 2
    assert "cofiring" not in redundancy(alike, [SimpleNamespace(x=x)], 0.99999)


def test_a_probe_that_is_never_right_is_no_letter_to_absorb():
    """Nothing can be averaged over no words, also where ``least_probe_f1`` is 0."""
    directions, right = torch.eye(2), torch.zeros(2, 3, dtype=torch.bool)
    probes = Probes(["a", "b"], directions, right, torch.tensor([0.0, 0.5]))
    assert readable_categories(probes, AbsorptionSettings(least_probe_f1=0.0)) == [1]


def test_a_layer_whose_y_tells_no_letter_is_not_measured_and_that_is_no_error(world, caplog):
    unreadable = world.probes._replace(f1=torch.zeros(len(LETTERS)))
    task = CategoryTask(world.task, unreadable, SETTINGS, SAMPLING)
    model = Transcoder(TranscoderConfig(d_in=3, d_out=world.task.y.shape[1], d_hidden=8, k=2))
    assert task.of_transcoder(model) is None
    assert task.of_affine(lambda x, y: Prediction(world.task.y, None)) == NO_CATEGORY
    assert caplog.text.count("not measured: absorption.least_probe_f1") == 2
    assert task.categories_left_out == ", ".join(string.ascii_lowercase)


def test_a_task_is_put_to_a_map_and_says_which_letters_it_leaves_out(world):
    task = CategoryTask(world.task, world.probes, SETTINGS, SAMPLING)
    metrics = task.of_affine(lambda x, y: Prediction(world.task.y, None))
    assert metrics == skip_alone(lambda x: world.task.y, world.task, world.probes, SETTINGS, SAMPLING)
    assert compared(metrics) == {"mean_absorption": 0.0, "full_absorption": 0.0}
    assert task.categories_left_out == ", ".join("defghijklmnopqruvwxyz")


def test_nouns_are_sorted_by_their_hypernyms_and_the_control_deals_these_anew(gemma):
    assert set(HYPERNYMS) < set(read_table())
    tokenizer = load_tokenizer(gemma)
    settings = AbsorptionSettings(task="hypernyms", words=300)
    words = words_of_task(tokenizer, settings)
    assert len(words) == 300
    of = {word.text: word.category for word in words_of_task(tokenizer, AbsorptionSettings(task="hypernyms"))}
    assert (of["camel"], of["lawyer"], of["helium"]) == ("animal", "person", "chemical element")
    assert "run" not in of
    (ids, _), *_ = task_prompts(words, tokenizer, 0, [2], None)
    first, second = tokenizer.decode(ids[1:]).split("\n")[:2]
    for line in (first, second):
        word, category = line.strip().split(": ")
        assert of[word] == category
    bridge = load_bridge(gemma, torch.device("cpu"))
    tap = resolve_tap(bridge, 3, HookSettings())
    task = read_words(bridge, tap, tokenizer, [2], settings)
    dealt = read_words(bridge, tap, tokenizer, [2], settings.model_copy(update={"shuffled": True}))
    assert [of[word] for word in task.words] == task.categories.tolist()
    assert torch.equal(task.y, dealt.y)
    assert task.categories.tolist() != dealt.categories.tolist()
    assert sorted(task.categories) == sorted(dealt.categories)
    assert set(fit_probes(task).categories) <= set(categories_of("hypernyms"))
    assert float(fit_probes(task).f1.mean()) > 2 * float(fit_probes(dealt).f1.mean())
