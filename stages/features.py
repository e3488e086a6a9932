"""Stage `features`: what each latent of one trained transcoder means, and a page to read it on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.entry import entry
from stages.params import load_params
from stages.runs import Inputs, Run, open_inputs, parse_run
from transcoders.core.devices import matmul_precision, multiplies_bf16, resolve_device
from transcoders.core.errors import UserError
from transcoders.core.files import cache_folder, replacing, rounded, sha256_of, write_json
from transcoders.core.tables import read_parquet, write_parquet
from transcoders.dictionary.transcoder import WEIGHTS, Transcoder
from transcoders.features.describe import Described, Latents, Texts, describe, gather
from transcoders.features.detection import LEAST, histogram, summary
from transcoders.features.effects import effects_of, nearest, read_unembedding, relatives
from transcoders.features.endpoint import Endpoint
from transcoders.features.observe import observe
from transcoders.features.openai import OpenAI
from transcoders.features.page import write_page
from transcoders.features.settings import DescribeSettings, FeatureSettings
from transcoders.features.statistics import Statistics
from transcoders.features.tables import contexts_table, latents_table, scores_of
from transcoders.language.model import load_model, load_tokenizer

DATA = Path("data/features")
MODEL = Path("data/model")
DOCUMENTS = Path("data/documents.parquet")


class Found(NamedTuple):
    """All that is known of the living latents."""

    latents: pd.DataFrame
    contexts: pd.DataFrame
    metrics: dict[str, float]


def run(which: Run) -> None:
    """models/<run>/ and the store -> data/features/<run>*, data/scores/<run>.csv, metrics/features/<run>.json."""
    params = load_params()
    settings = params.features
    endpoint = _endpoint(settings.describe)
    device = resolve_device(params.device)
    inputs = open_inputs(which.layer, device)
    weights = _hash(which.folder)
    model = Transcoder.load(which.folder, device)
    found = find(model, inputs, settings, endpoint)
    if _hash(which.folder) != weights:
        raise UserError(
            f"{which.folder / WEIGHTS}: changed while its latents were studied (is a training run writing there?); "
            "nothing was kept: run this stage again when it is done"
        )
    write(which, found, model.config.d_hidden)
    write_json(
        Path("metrics/features") / f"{which.name}.json",
        {
            **rounded(found.metrics),
            "seed": which.seed,
            "split_hash": inputs.split_hash,
            "model_hash": inputs.store.attributes["model_hash"][:16],
        },
    )


def find(model: Transcoder, inputs: Inputs, settings: FeatureSettings, endpoint: Endpoint | None) -> Found:
    """Watch, describe and score the latents.

    Raises:
        UserError: none fires; the server that was to describe them failed.
    """
    device, tokenizer = model.W_dec.device, load_tokenizer(MODEL)
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and multiplies_bf16(device))
    with matmul_precision(device, bf16=bf16):
        observer = observe(model, inputs.store, inputs.documents["test"], settings)
        living = np.flatnonzero(observer.firings)
        unembedding = read_unembedding(load_model(MODEL, device), tokenizer)
        effects = effects_of(model.W_dec[living] * model.config.output_scale, unembedding, settings.effects)
    texts = Texts(tokenizer)
    latents = gather(observer, effects, texts)
    explainer = Statistics(observer.windows, settings.window, latents.words, settings.describe)
    described = describe(explainer, latents.evidence, latents.unseen)
    metrics = {
        "living": float(len(living)),
        "living_fraction": len(living) / model.config.d_hidden,
        "tokens": float(sum(observer.tokens.values())),
        "tokens_held_out": float(observer.tokens["held_out"]),
        **summary(scores_of(described), settings.describe),
    }
    if endpoint:
        metrics |= _ask(endpoint, latents, described, settings.describe)
    table = latents_table(
        observer, latents, described, effects, nearest(model.W_dec, living, settings.neighbours),
        relatives(observer), texts,
    )  # fmt: skip
    return Found(table, contexts_table(observer, latents, texts), metrics)


def write(which: Run, found: Found, d_hidden: int) -> None:
    """Both tables, the histogram of the scores and the page."""
    for name, table in ((which.name, found.latents), (f"{which.name}-contexts", found.contexts)):
        write_parquet(table, DATA / f"{name}.parquet", index=False, compression="zstd")
    with replacing(Path("data/scores") / f"{which.name}.csv") as path:
        histogram(found.latents["score"].to_numpy()).to_csv(path, index=False)
    titles = read_parquet(DOCUMENTS, "collect", ["title"])["title"]
    with replacing(DATA / which.name) as folder:
        write_page(folder, which.name, found.latents, found.contexts, list(titles), _headline(found.metrics, d_hidden))


def _endpoint(settings: DescribeSettings) -> Endpoint | None:
    return Endpoint(settings.openai, cache_folder("answers")) if settings.explainer == "openai" else None


def _ask(
    endpoint: Endpoint, latents: Latents, described: list[Described], settings: DescribeSettings
) -> dict[str, float]:
    """Replace the descriptions of some latents, evenly spread, by the server's."""
    scorable = [row for row, unseen in enumerate(latents.unseen) if len(unseen.active) >= LEAST]
    chosen = sorted({scorable[i] for i in np.linspace(0, len(scorable) - 1, settings.openai.latents).astype(int)})
    explainer = OpenAI(endpoint, settings.openai.concurrency)
    answers = describe(explainer, [latents.evidence[i] for i in chosen], [latents.unseen[i] for i in chosen])
    for row, answer in zip(chosen, answers, strict=True):
        described[row] = answer
    unanswered = sum(answer.description is None for answer in answers)
    return {**summary(scores_of(answers), settings, "openai_"), "openai_unanswered": float(unanswered)}


def _headline(metrics: dict[str, float], d_hidden: int) -> list[tuple[str, str]]:
    """What stands at the top of the page."""
    found = [
        ("living latents", f"{metrics['living']:,.0f} of {d_hidden:,}"),
        ("tokens", f"{metrics['tokens']:,.0f}"),
    ]
    for prefix, name in (("", "mean score"), ("openai_", "asked of a model")):
        if f"{prefix}detection_score" in metrics:
            mean, low, high = (metrics[f"{prefix}detection_score{end}"] for end in ("", "_low", "_high"))
            found.append((name, f"{mean:.3f} (95 %: {low:.3f} to {high:.3f})"))
            found.append(
                ("above 0.7", f"{metrics[f'{prefix}detection_above_0.7']:.0%} of {metrics[f'{prefix}scored']:,.0f}")
            )
    return found


def _hash(folder: Path) -> str:
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder}: holds no {WEIGHTS} (any more); train the run, then run this stage again")
    return sha256_of(file)


if __name__ == "__main__":
    arguments = parse_run(__doc__)
    entry(lambda: run(arguments))
