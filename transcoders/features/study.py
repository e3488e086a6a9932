"""Watching, describing and scoring the latents of one transcoder."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from transcoders.activations.store import Store
from transcoders.core.devices import matmul_precision, multiplies_bf16
from transcoders.dictionary.transcoder import Transcoder
from transcoders.features.describe import Described, Latents, describe, gather
from transcoders.features.effects import effects_of, nearest, read_unembedding, relatives
from transcoders.features.observe import observe
from transcoders.features.openai import OpenAI
from transcoders.features.scores import LEAST
from transcoders.features.settings import DescribeSettings, FeatureSettings
from transcoders.features.statistics import Statistics
from transcoders.features.tables import contexts_table, latents_table, summaries
from transcoders.features.texts import Texts
from transcoders.features.vocabulary import vocabulary_of
from transcoders.language.model import load_model, load_tokenizer

if TYPE_CHECKING:
    from transcoders.features.endpoint import Endpoint


class Study(NamedTuple):
    """Hold all that is known of the latents that fire."""

    latents: pd.DataFrame
    contexts: pd.DataFrame
    metrics: dict[str, float]

    def headline(self, d_hidden: int) -> list[tuple[str, str]]:
        """Return what stands at the top of the page: names and figures."""
        metrics = self.metrics
        lines = [
            ("living latents", f"{metrics['living']:,.0f} of {d_hidden:,}"),
            ("tokens", f"{metrics['tokens']:,.0f}"),
        ]
        for prefix, of_whom in (("", ""), ("openai_", ", asked of a model")):
            for kind in ("detection", "fuzzing"):
                name = prefix + kind
                if f"{name}_score" in metrics:
                    mean, low, high = (metrics[f"{name}_score{end}"] for end in ("", "_low", "_high"))
                    share, scored = metrics[f"{name}_above_0.7"], metrics[f"{name}_scored"]
                    lines.append((kind + of_whom, f"{mean:.3f} (95 %: {low:.3f} to {high:.3f})"))
                    lines.append(("above 0.7", f"{share:.0%} of {scored:,.0f}"))
        return lines


def endpoint_of(settings: DescribeSettings, cache: Path) -> "Endpoint | None":
    """Return the server that describes latents, if one does."""
    if settings.explainer != "openai":
        return None
    from transcoders.features.endpoint import Endpoint  # its client takes a second to import

    return Endpoint(settings.openai, cache)


def study(
    model: Transcoder,
    store: Store,
    held_out: NDArray[np.bool_],
    base_model: Path,
    settings: FeatureSettings,
    endpoint: "Endpoint | None",
) -> Study:
    """Watch the latents of ``model`` on ``store``, describe them, and score the descriptions on held-out documents.

    ``held_out`` is a mask over document ids; ``base_model`` is the folder of the language model; an ``endpoint``
    describes some of the latents in place of the statistics.

    Raises:
        UserError: no latent fires, or the server that was to describe them failed.
    """
    device, tokenizer = model.W_dec.device, load_tokenizer(base_model)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and multiplies_bf16(device))
    with matmul_precision(device, bf16=bf16):
        observer = observe(model, store, held_out, settings)
        living = np.flatnonzero(observer.firings)
        language_model = load_model(base_model, device)
        unembedding = read_unembedding(language_model, tokenizer)
        effects = effects_of(model.W_dec[living] * model.config.output_scale, unembedding, settings.effects)
    texts = Texts(tokenizer)
    for ids in (*observer.token_ids(), effects.promoted, effects.suppressed):
        texts.learn(ids)
    latents = gather(observer, effects, texts)
    vocabulary = vocabulary_of(texts.known, observer.words, language_model.get_input_embeddings().weight)
    explainer = Statistics(vocabulary, observer.usual.fields["tokens"][0][observer.usual.of(0)])
    described = describe(explainer, latents.evidence, latents.unseen)
    metrics = {
        "living": float(len(living)),
        "living_fraction": len(living) / model.config.d_hidden,
        "tokens": float(sum(observer.tokens.values())),
        "tokens_held_out": float(observer.tokens["held_out"]),
        **summaries(described, settings.describe),
    }
    if endpoint:
        metrics |= ask(
            OpenAI(endpoint, texts, settings.describe.openai.concurrency), latents, described, settings.describe
        )
    neighbours = nearest(model.W_dec, living, settings.neighbours)
    table = latents_table(observer, latents, described, effects, neighbours, relatives(observer), texts)
    return Study(table, contexts_table(observer, latents, texts), metrics)


def ask(
    explainer: OpenAI, latents: Latents, described: list[Described], settings: DescribeSettings
) -> dict[str, float]:
    """Replace the descriptions of some latents, evenly spread, by the server's, and return their scores."""
    scorable = [row for row, unseen in enumerate(latents.unseen) if len(unseen.active) >= LEAST]
    chosen = sorted({scorable[i] for i in np.linspace(0, len(scorable) - 1, settings.openai.latents).astype(int)})
    answers = describe(explainer, [latents.evidence[i] for i in chosen], [latents.unseen[i] for i in chosen])
    for row, answer in zip(chosen, answers, strict=True):
        described[row] = answer
    unanswered = sum(answer.description is None for answer in answers)
    return {**summaries(answers, settings, "openai_"), "openai_unanswered": float(unanswered)}
