"""What latents do and how they relate: tokens that they promote, nearest decoder rows, parents and children."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from transcoders.dictionary.transcoder import Transcoder
from transcoders.features.observe import Observer
from transcoders.features.texts import PAD
from transcoders.language.head import read_head

BLOCK = 8192
"""Tokens of the vocabulary on which the effects of all rows are computed at once."""
RELATIVES = 6
LEAST_EXCESS = 0.2
"""A parent fires with its child this much more often (share of the child's firings) than at other times."""


class Unembedding(NamedTuple):
    """Say how the residual stream becomes logits, but for the norm's scale and a cap: ``logits = (gain * r) W_U``."""

    weight: Float[Tensor, "vocabulary d"]
    gain: Float[Tensor, "d"]
    named: Int[Tensor, "named"]
    """Ids of ordinary tokens: neither special nor unused."""


class Effects(NamedTuple):
    """Hold the tokens that latents promote and suppress, strongest first."""

    promoted: NDArray[np.int64]
    promoted_by: NDArray[np.float32]
    suppressed: NDArray[np.int64]
    suppressed_by: NDArray[np.float32]


class Relatives(NamedTuple):
    """Hold the candidates to be the parents of one latent, or its children."""

    latent: list[int]
    share: list[float]
    """Of the child's firings, how many the parent shares."""


@torch.no_grad()
def read_unembedding(model: Any, tokenizer: Any) -> Unembedding:
    """Return the output embeddings of a Hugging Face model, and the gain of its final norm times its logits' scale.

    The gain is measured on a vector of mean 0 and mean square 1, which an RMSNorm and a LayerNorm
    only scale (by w in some families, by 1 + w in Gemma) and shift.
    """
    head = read_head(model)
    weight = head.weight
    norm = _last_norm(model)
    probe = torch.ones(weight.shape[1], device=weight.device)
    probe[1::2] = -1
    gain = (norm(probe) - norm(-probe)) / 2 * probe * head.scale
    texts = tokenizer.convert_ids_to_tokens(range(min(len(weight), len(tokenizer))))
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    named = [i for i, text in enumerate(texts) if i not in special and text and "unused" not in text]
    return Unembedding(weight, gain, torch.tensor(named, device=weight.device))


def _last_norm(model: Any) -> Any:
    """Return what a forward pass calls last with a weight for each dimension, whatever the family names it."""
    called: list[Any] = []
    norms = [m for m in model.modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 1]
    hooks = [norm.register_forward_hook(lambda norm, *_: called.append(norm)) for norm in norms]
    model(torch.zeros(1, 1, dtype=torch.long, device=model.device))
    for hook in hooks:
        hook.remove()
    return called[-1]


@torch.no_grad()
def effects_of(rows: Float[Tensor, "latents d"], unembedding: Unembedding, count: int) -> Effects:
    """Return the direct effect of decoder rows on the logits, relative to the mean over all tokens.

    It leaves out what later layers make of the latent. Units: logits for an activation of 1
    (normalised) where the final norm's scale is 1.
    """
    directions = rows * unembedding.gain
    best: list[list[tuple[Tensor, Tensor]]] = [[], []]
    total = torch.zeros_like(directions[0])
    for tokens in unembedding.named.split(BLOCK):
        weight = unembedding.weight[tokens]
        total += weight.sum(0)
        logits = directions @ weight.T
        for largest, found in zip((True, False), best, strict=True):
            values, places = logits.topk(min(count, len(tokens)), largest=largest)
            found.append((values, tokens[places]))
    mean = directions @ (total / len(unembedding.named))
    columns: list[NDArray[Any]] = []
    for largest, found in zip((True, False), best, strict=True):
        values, tokens = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        values, places = values.topk(count, largest=largest)
        columns += [tokens.gather(1, places).cpu().numpy(), (values - mean[:, None]).cpu().numpy()]
    return Effects(*columns)


@torch.no_grad()
def nearest(
    rows: Float[Tensor, "latents d"], living: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return, for each living latent, the living ones with the nearest decoder rows, and the cosines."""
    unit = normalize(rows[torch.from_numpy(living).to(rows.device)], dim=1)
    ids, cosines = [], []
    for start in range(0, len(unit), 1024):
        part = unit[start : start + 1024] @ unit.T
        part[torch.arange(len(part)), start + torch.arange(len(part))] = -2
        best = part.topk(min(count, len(unit) - 1))
        ids.append(living[best.indices.cpu().numpy()])
        cosines.append(best.values.cpu().numpy())
    return np.concatenate(ids), np.concatenate(cosines)


def relatives(observer: Observer) -> tuple[list[Relatives], list[Relatives]]:
    """Return the parents and children of every latent of a nested model, as their firings suggest.

    A candidate parent is in an earlier group and fires at many of the sampled firings of the child,
    beyond how often it fires anyway. Lists are empty for latents without any.
    """
    model: Transcoder = observer.model
    F = model.config.d_hidden
    density = observer.firings / max(sum(observer.tokens.values()), 1)
    parents = [Relatives([], []) for _ in range(F)]
    children = [Relatives([], []) for _ in range(F)]
    for group in model.config.groups[1:]:
        for latent in range(group.start, group.stop):
            beside = observer.sample.fields["beside"][latent][observer.sample.of(latent)]
            earlier = beside[(beside != PAD) & (beside < group.start)]
            ids, counts = np.unique(earlier, return_counts=True)
            share = counts / max(len(beside), 1)
            excess = share - density[ids]
            for i in np.argsort(-excess, kind="stable")[:RELATIVES]:
                if excess[i] >= LEAST_EXCESS:
                    parents[latent].latent.append(int(ids[i]))
                    parents[latent].share.append(float(share[i]))
    for child, (ids_of, shares) in enumerate(parents):
        for parent, value in zip(ids_of, shares, strict=True):
            children[parent].latent.append(child)
            children[parent].share.append(value)
    return parents, [_strongest(candidates, observer.firings) for candidates in children]


def _strongest(candidates: Relatives, firings: NDArray[np.int64]) -> Relatives:
    """Return the children that share most of the parent's firings: many of theirs, and many at all."""
    order = sorted(range(len(candidates.latent)), key=lambda i: -candidates.share[i] * firings[candidates.latent[i]])[
        : 2 * RELATIVES
    ]
    return Relatives([candidates.latent[i] for i in order], [candidates.share[i] for i in order])
