"""Steering: a text goes on while latents are held at multiples of a value, beside the model left alone."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.circuits.attribution import Targets, attribute
from transcoders.circuits.frozen import Frozen, freeze
from transcoders.circuits.graph import Graph, Output
from transcoders.circuits.interventions import Changes, Freeze, Intervention, changed, respond_to
from transcoders.circuits.parts import ModelParts, load_parts
from transcoders.circuits.prompts import SteeredPrompt
from transcoders.circuits.settings import CircuitSettings, InterventionSettings
from transcoders.circuits.suite import loaded, prompt_tokens
from transcoders.circuits.writers import Transcoders
from transcoders.core.devices import resolve_device
from transcoders.core.errors import UserError
from transcoders.core.files import rounded
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.transcoder import Transcoder
from transcoders.evaluation.intervals import paired
from transcoders.language.model import load_tokenizer
from transcoders.language.tokens import check_room, text_ids

WAYS: dict[str, Freeze] = {"logit": "nothing", "logit_attention_frozen": "attention", "logit_all_frozen": "all"}
"""Column of the dose-response table -> what is frozen there."""


class Held(NamedTuple):
    """Say which latent is held from which position on, and at what value for a dose of 1."""

    layer: int
    latent: int
    first: int
    value: float

    def at(self, dose: float) -> Intervention:
        """Return the intervention that holds the latent at ``dose`` times its value, in generated tokens too."""
        return Intervention(self.layer, self.latent, slice(self.first, None), dose * self.value)


def dose_response(
    parts: ModelParts,
    transcoders: Transcoders,
    tokenizer: Any,
    prompt: SteeredPrompt,
    settings: InterventionSettings,
) -> pd.DataFrame:
    """Return what each dose does to a prompt: one row for the model left alone, then one a dose and group of latents.

    Groups: ``chosen``, and ``random``, as many others that are active in the prompt. Columns: the answer's logit with
    nothing, attention or all frozen; its probability, the KL divergence from the model left alone (nats, at the
    prompt's end), and a greedy continuation with its perplexity under the model left alone.

    Raises:
        UserError: the answer is several tokens, the prompt leaves no room for what is to be generated, or a latent of
            ``prompt.steer`` does not exist.
    """
    where = f"interventions.prompts: {prompt.name}"
    answer = text_ids(tokenizer, prompt.answer)
    if len(answer) != 1:
        raise UserError(
            f"{where}: the answer {prompt.answer!r} is {len(answer)} tokens; give one that is a single token"
        )
    tokens = prompt_tokens(tokenizer, transcoders, prompt.text)
    check_room(parts.model, torch.cat([tokens, tokens.new_zeros(settings.tokens)])[None], where)
    frozen = freeze(parts, transcoders, tokens)
    groups = _groups(frozen, answer[0], prompt, settings)
    rows = [("none", 1.0)] + [(group, dose) for group in groups for dose in settings.doses]
    cases = [[held.at(dose) for held in groups[group]] for group, dose in rows[1:]]
    measured = {name: respond_to(frozen, transcoders, cases, way) for name, way in WAYS.items()}
    final = {name: parts.head.logits(run.states[:, -1]).float() for name, run in measured.items()}
    made = generate(parts, transcoders, tokens, [[], *cases], settings.tokens, ends_of(parts))
    table = pd.DataFrame(rows, columns=["group", "dose"])
    for name, logits in final.items():
        table[name] = logits[:, answer[0]].double().cpu().numpy()
    table["probability"] = final["logit"].softmax(-1)[:, answer[0]].double().cpu().numpy()
    table["kl"] = measured["logit"].divergences(parts.head).double().cpu().numpy()
    table["perplexity"] = perplexity(parts, tokens, made).double().numpy()
    table["text"] = [tokenizer.decode(row) for row in made]
    latents = {name: " ".join(f"{held.layer}/{held.latent}" for held in group) for name, group in groups.items()}
    table.insert(0, "latents", table["group"].map(latents).fillna(""))
    table.insert(0, "prompt", prompt.name)
    return table


def _groups(
    frozen: Frozen, answer: int, prompt: SteeredPrompt, settings: InterventionSettings
) -> dict[str, list[Held]]:
    """Return the latents to hold, and as many that are active in the prompt by chance."""
    unembedding = frozen.parts.unembedding
    direction = unembedding[answer] - unembedding.mean(0)
    target = Targets([Output(prompt.answer, answer, 1.0, 0.0)], direction[None])
    graph = attribute(frozen, target, CircuitSettings(max_latents=1))  # of the output's row alone
    order = graph.effects[0, : len(graph.layer)].argsort(descending=True).tolist()
    if prompt.steer is None:
        chosen = [_held(graph, column) for column in order[: settings.strongest]]
    else:
        chosen = [Held(one.layer, one.latent, one.first, one.value) for one in prompt.steer]
    taken = {held[:2] for held in chosen}
    others = [column for column in order if graph.place(column)[:2] not in taken]
    drawn = np.random.default_rng(settings.seed).permutation(others)[: len(chosen)]
    return {"chosen": chosen, "random": [_held(graph, int(column)) for column in drawn]}


def _held(graph: Graph, column: int) -> Held:
    """Return an active latent, to be held at its value in the prompt from its position on."""
    return Held(*graph.place(column), float(graph.value[column]))


class Intervened(NamedTuple):
    """Hold what the model predicts after a text, and how it goes on, left alone and with interventions."""

    words: list[str]
    """The text's tokens, the start of its context first."""
    before: Float[Tensor, "tokens vocabulary"]
    """Logits after each token of the text, left alone."""
    after: Float[Tensor, "tokens vocabulary"]
    text_before: str
    """What is generated, left alone; nothing unless tokens were asked for."""
    text_after: str


@torch.inference_mode()
def intervene(
    text: str,
    interventions: Sequence[Intervention],
    transcoders: CrossLayerTranscoder | Mapping[int, Transcoder | str | Path],
    model: str | Path = "data/model",
    freeze_what: Freeze = "nothing",
    tokens: int = 0,
    device: str = "cpu",
) -> Intervened:
    """Run the model on ``text`` with latents set, scaled or ablated, and beside it as it is.

    Args:
        text: What the model reads, after what the contexts began with that the transcoders were trained on.
        interventions: What latents become, all together: ``Intervention(layer, latent, positions, value)``.
        transcoders: By layer, a transcoder on ``device`` or the folder of one of ours; or a cross-layer transcoder.
        model: The folder of the language model, as stage `model` writes it.
        freeze_what: What keeps its values of the untouched run; for the logits, not for what is generated.
        tokens: How many tokens to generate (greedily); positions with an open end hold for these too.
        device: Where to compute: auto, cpu, cuda or cuda:N.

    Raises:
        UserError: a layer, latent or position does not exist, a value is no finite number, the text is too long, a
            transcoder does not fit the model, or the model's layers are not like Gemma's or Llama's.
    """
    where = resolve_device(device)
    parts, tokenizer = load_parts(Path(model), where), load_tokenizer(Path(model))
    ours = loaded(transcoders, where)
    ids = prompt_tokens(tokenizer, ours, text)
    check_room(parts.model, torch.cat([ids, ids.new_zeros(tokens)])[None], "text")
    run = respond_to(freeze(parts, ours, ids), ours, [interventions], freeze_what)
    before, after = (parts.head.logits(states) for states in run.states)
    ways: list[Sequence[Intervention]] = [[], interventions]
    made = generate(parts, ours, ids, ways, tokens, ends_of(parts))
    texts = [tokenizer.decode(row) for row in made]
    return Intervened([tokenizer.decode([token]) for token in ids.tolist()], before, after, *texts)


@torch.inference_mode()
def generate(
    parts: ModelParts,
    transcoders: Transcoders,
    tokens: Int[Tensor, "tokens"],
    cases: Sequence[Sequence[Intervention]],
    count: int,
    ends: Collection[int],
) -> list[list[int]]:
    """Return at most ``count`` greedy next tokens of each case, with its interventions in place from the first on.

    A case ends before a token of ``ends``. The cases run together, with a cache of keys and values.
    """
    made: list[list[int]] = [[] for _ in cases]
    going = [True] * len(cases)
    ids, cache = tokens.to(parts.device).expand(len(cases), -1), None
    with changed(parts, Changes(transcoders, cases, len(tokens))):
        for _ in range(count):
            out = parts.model.base_model(ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            ids = parts.head.logits(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
            for case, token in enumerate(ids[:, 0].tolist()):
                going[case] &= token not in ends
                if going[case]:
                    made[case].append(token)
            if not any(going):
                break
    return made


def ends_of(parts: ModelParts) -> set[int]:
    """Return the tokens with which the model ends a text; its config names one, several or none."""
    named = parts.model.config.eos_token_id
    return set() if named is None else set(named) if isinstance(named, list) else {named}


@torch.inference_mode()
def perplexity(parts: ModelParts, tokens: Int[Tensor, "tokens"], made: Sequence[Sequence[int]]) -> Float[Tensor, "n"]:
    """Return the perplexity of each continuation of ``tokens`` under the untouched model; NaN of an empty one."""
    values = []
    for row in made:
        text = torch.cat([tokens, tokens.new_tensor(row, dtype=tokens.dtype)]).to(parts.device)
        states = parts.model.base_model(text[None], use_cache=False).last_hidden_state[0, len(tokens) - 1 : -1]
        log_p = parts.head.logits(states).float().log_softmax(-1)
        values.append(log_p.gather(1, text[len(tokens) :, None]).mean().neg().exp())  # of nothing the mean is NaN
    return torch.stack(values).cpu()


def steering_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Return what a set's dose-response table comes to.

    Means over prompts, medians of perplexity, and intervals paired by prompt. ``ablated_drop`` is the answer's logit
    lost without the chosen latents (where dose 0 was asked for), beside that without random ones; ``rise`` is
    Spearman's correlation of dose and logit.
    """
    alone = table[table["group"] == "none"].set_index("prompt")
    metrics = {"prompts": float(len(alone)), "perplexity": float(alone["perplexity"].median())}
    drops = {}
    for group, of in table[table["group"] != "none"].groupby("group"):
        name = str(group)
        ranks = [part["dose"].corr(part["logit"], method="spearman") for _, part in of.groupby("prompt")]
        metrics[f"{name}_rise"] = float(np.nanmean(ranks)) if np.isfinite(ranks).any() else float("nan")
        metrics[f"{name}_perplexity"] = float(of["perplexity"].median())
        ablated = of[of["dose"] == 0].set_index("prompt")
        if len(ablated):
            drops[name] = alone["logit"].reindex(ablated.index) - ablated["logit"]
            metrics |= {f"{name}_ablated_drop": float(drops[name].mean()), f"{name}_ablated_kl": ablated["kl"].mean()}
    if len(drops) == 2 and len(both := drops["chosen"].index.intersection(drops["random"].index)) > 1:
        values = paired(drops["chosen"].loc[both], drops["random"].loc[both])
        names = ("ablated_drop_beyond_random", "ablated_drop_beyond_random_low", "ablated_drop_beyond_random_high")
        metrics |= dict(zip(names, map(float, values), strict=True))
    return rounded({name: float(value) for name, value in metrics.items() if np.isfinite(value)})
