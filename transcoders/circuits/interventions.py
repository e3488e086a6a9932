"""Interventions: what a model does once latents are set, scaled or ablated.

The change of a latent times its decoder rows is added to what the MLPs of the layers that it writes to really put out,
so that what a transcoder misses of an MLP stays as it is (Ameisen et al. 2025, "Circuit Tracing", on interventions).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.circuits.frozen import Frozen, attend, mlp_output
from transcoders.circuits.parts import ModelParts
from transcoders.circuits.writers import Transcoders, Waiting, Writer, writers_of
from transcoders.core.errors import UserError
from transcoders.language.head import Head

Freeze = Literal["nothing", "attention", "all"]
"""What keeps its values of the untouched run: nothing; attention patterns; these, norms' denominators and all MLPs'
outputs, so that direct effects alone remain."""
CASES_PER_BATCH = 32


class Intervention(NamedTuple):
    """Say what a latent becomes at some positions of a text, whose first token (BOS, position 0) has no latents."""

    layer: int
    latent: int
    positions: int | slice
    """A negative one counts from the prompt's end; a slice with an open end holds for generated tokens too."""
    value: float
    """What the latent is set to, or what it is multiplied with."""
    how: Literal["set", "scale"] = "set"


def ablate(layer: int, latent: int, positions: int | slice) -> Intervention:
    """Return the intervention that silences a latent."""
    return Intervention(layer, latent, positions, 0.0)


class Response(NamedTuple):
    """Hold what cases of interventions did to one prompt; the first case is the untouched model."""

    states: Float[Tensor, "cases tokens d_model"]
    """The normalised final states, which the head makes logits of."""
    x: dict[int, Float[Tensor, "cases tokens d_model"]]
    """What the MLP of each layer received."""

    def divergences(self, head: Head) -> Float[Tensor, "cases"]:
        """Return the KL divergence (nats) of each case's prediction at the prompt's end from the untouched model's."""
        log_p = head.logits(self.states[:, -1]).float().log_softmax(-1)
        return (log_p[0].exp() * (log_p[0] - log_p)).sum(-1)


class _Change(NamedTuple):
    """Hold an intervention whose positions are counted from the first token: from ``first`` up to before ``stop``."""

    case: int
    first: int
    stop: float
    intervention: Intervention


class Changes:
    """Add to the MLPs' outputs of passes from the first layer to the last what cases of interventions change."""

    def __init__(self, transcoders: Transcoders, cases: Sequence[Sequence[Intervention]], prompt: int) -> None:
        """Take the interventions of each case on a text of which the first ``prompt`` tokens are given.

        Raises:
            UserError: a layer, latent or position does not exist, or a value is no finite number.
        """
        self._writers = writers_of(transcoders)
        self._by_layer: dict[int, list[_Change]] = {}
        for case, interventions in enumerate(cases):
            for one in interventions:
                first, stop = _checked(one, self._writers, prompt)
                self._by_layer.setdefault(one.layer, []).append(_Change(case, first, stop, one))
        self._waiting = Waiting()

    def added(
        self, layer: int, x: Float[Tensor, "cases tokens d_model"], y: Tensor, begin: int
    ) -> Float[Tensor, "cases tokens d_model"]:
        """Return ``y`` of a layer's MLP with what latents of that and earlier layers changed by.

        ``x`` decides what the latents are before; ``begin`` is the position of its first token in the text.
        """
        where = [
            (change.case, position, change.intervention)
            for change in self._by_layer.get(layer, [])
            for position in range(max(change.first - begin, 0), int(min(change.stop - begin, x.shape[1])))
        ]
        if where:
            row = torch.tensor([case * x.shape[1] + position for case, position, _ in where], device=x.device)
            of_rows = x.flatten(0, 1)[row]
            for target, written in self._written(layer, [one for *_, one in where], of_rows).items():
                part = torch.zeros_like(y.flatten(0, 1)).index_add(0, row, written.to(y)).view_as(y)
                if target == layer:
                    y = y + part
                else:
                    self._waiting.add_(target, part)
        return self._waiting.add_to(layer, y)

    def _written(self, layer: int, of_rows: list[Intervention], x: Float[Tensor, "rows d_model"]) -> dict[int, Tensor]:
        """Return what the change of one latent in each row adds to the y of every layer that it writes to."""
        writer = self._writers[layer]
        latent = torch.tensor([one.latent for one in of_rows], device=x.device)
        value = torch.tensor([one.value for one in of_rows], device=x.device, dtype=x.dtype)
        scaled = torch.tensor([one.how == "scale" for one in of_rows], device=x.device)
        before = active_values(writer, x, latent)
        change = torch.where(scaled, (value - 1) * before, value - before)
        rows = writer.decoders().items()
        scales = writer.output_scales
        return {n: change[:, None] * W[latent].to(x) * scale for (n, W), scale in zip(rows, scales, strict=True)}


def active_values(writer: Writer, x: Float[Tensor, "rows d_model"], latent: Int[Tensor, "rows"]) -> Tensor:
    """Return the value of one latent in each row, 0 where it is not active; a row's own products, in the dtype of x."""
    model = writer.latents
    active = writer.encode(x.to(model.W_enc.dtype)).dense()[torch.arange(len(x), device=x.device), latent] > 0
    encoder = model.W_enc.detach()[latent].to(x) / writer.input_scale
    return ((x * encoder).sum(1) + model.b_enc.detach()[latent].to(x)) * active


@torch.inference_mode()
def respond_to(
    frozen: Frozen, transcoders: Transcoders, cases: Sequence[Sequence[Intervention]], freeze: Freeze
) -> Response:
    """Run a prompt with each case's interventions together, after a first run without any.

    Raises:
        UserError: as ``Changes`` does.
    """
    responses = []
    for start in range(0, max(len(cases), 1), CASES_PER_BATCH):
        part = [[], *cases[start : start + CASES_PER_BATCH]]
        changes = Changes(transcoders, part, len(frozen.tokens))
        run = _run_live(frozen, changes, len(part)) if freeze == "nothing" else _walk(frozen, changes, part, freeze)
        responses.append(run if start == 0 else Response(run.states[1:], {n: x[1:] for n, x in run.x.items()}))
    return Response(
        torch.cat([run.states for run in responses]),
        {number: torch.cat([run.x[number] for run in responses]) for number in responses[0].x},
    )


def _run_live(frozen: Frozen, changes: Changes, cases: int) -> Response:
    with changed(frozen.parts, changes) as seen:
        tokens = frozen.tokens.expand(cases, -1)
        states = frozen.parts.model.base_model(tokens, use_cache=False).last_hidden_state
    return Response(states, seen)


@contextmanager
def changed(parts: ModelParts, changes: Changes) -> Iterator[dict[int, Tensor]]:
    """Let the model run with ``changes`` while this lasts; pass after pass goes on in the text where the last ended.

    The dictionary that it yields holds what the MLPs received in the latest pass, by layer.
    """
    seen: dict[int, Tensor] = {}
    begin = dict.fromkeys(range(len(parts.layers)), 0)

    def write(number: int) -> Any:
        def hook(module: Any, arguments: Any, y: Tensor) -> Tensor:
            x, first = seen[number], begin[number]
            begin[number] += x.shape[1]
            return changes.added(number, x, y, first)

        return hook

    def read(number: int) -> Any:
        def hook(module: Any, arguments: Any, x: Tensor) -> None:
            seen[number] = x

        return hook

    with ExitStack() as stack:
        for number, layer in enumerate(parts.layers):
            stack.callback(layer.mlp_in.register_forward_hook(read(number)).remove)
            stack.callback(layer.mlp_out.register_forward_hook(write(number)).remove)
        yield seen


def _walk(frozen: Frozen, changes: Changes, cases: Sequence[Any], freeze: Freeze) -> Response:
    """Run with the attention patterns of the untouched run; with ``all``, with its norms and MLPs' outputs as well."""
    everything = freeze == "all"
    r = frozen.embedding.expand(len(cases), -1, -1)
    received: dict[int, Tensor] = {}
    for number, (layer, step) in enumerate(zip(frozen.parts.layers, frozen.steps, strict=True)):
        normed = r * (step.attention_in if everything else layer.attention_norm.scale(r))
        added = attend(layer, step.pattern, normed)
        if layer.attention_post_norm is not None and step.attention_out is not None:
            added = added * (step.attention_out if everything else layer.attention_post_norm.scale(added))
        r = r + added
        x = received[number] = r * (step.mlp_in if everything else layer.mlp_norm.scale(r))
        y = step.y.expand_as(x) if everything else mlp_output(layer, x)
        if everything and step.site is not None and step.site.skip is not None:
            through = (x - x[:1]) @ step.site.skip.T
            y = y + torch.cat([torch.zeros_like(through[:, :1]), through[:, 1:]], 1)
        r = r + changes.added(number, x[:1].expand_as(x) if everything else x, y, 0)
    final = frozen.parts.final_norm
    return Response(r * (final.scale(r[:1]) if everything else final.scale(r)), received)


def _checked(one: Intervention, writers: Mapping[int, Writer], prompt: int) -> tuple[int, float]:
    """Return the first position of an intervention and the one after its last, both counted from the text's start."""
    where = f"intervention on layer {one.layer}, latent {one.latent}"
    if one.layer not in writers:
        raise UserError(f"{where}: there is no transcoder of this layer; there are those of {sorted(writers)}")
    count = writers[one.layer].latents.config.d_hidden
    if not 0 <= one.latent < count:
        raise UserError(f"{where}: the layer has latents 0 to {count - 1}")
    if not abs(one.value) < torch.finfo(torch.float32).max:
        raise UserError(f"{where}: value {one.value} is no finite number of 32 bits")
    if isinstance(one.positions, int):
        first = one.positions + prompt if one.positions < 0 else one.positions
        if not 1 <= first < prompt:
            raise UserError(
                f"{where}: position {one.positions} is none of 1 to {prompt - 1}, the prompt's tokens after BOS, which "
                "has no latents"
            )
        return first, first + 1
    if one.positions.step not in (None, 1):
        raise UserError(f"{where}: positions {one.positions} leave tokens out; give one intervention for each")
    start, stop = one.positions.start or 0, one.positions.stop
    first = max(start + prompt if start < 0 else start, 1)
    after = float("inf") if stop is None else stop + prompt if stop < 0 else stop
    if after <= first:
        raise UserError(f"{where}: positions {one.positions} hold no token but BOS, which has no latents")
    return first, after
