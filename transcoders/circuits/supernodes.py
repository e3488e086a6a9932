"""Supernodes: the latents of a pruned graph in a few groups, by what feeds them and what they feed.

After ADAG (arXiv 2604.07615), which clusters attribution profiles; no language model takes part.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from transcoders.circuits.frozen import Frozen
from transcoders.circuits.graph import Graph, Pruned, scores
from transcoders.circuits.interventions import ablate, respond_to
from transcoders.circuits.viewer import Labels
from transcoders.circuits.writers import Transcoders

MOST = 15
"""Groups of a graph: as many boxes as can be read at a glance."""
FEWEST_SHARED = 8
"""Latents that two graphs must have in common, for their groups to be compared."""


class Supernode(NamedTuple):
    """Hold a group of latents: columns of the graph, the most influential first."""

    name: str
    columns: list[int]


def group_latents(graph: Graph, pruned: Pruned) -> list[list[int]]:
    """Return the latents that ``pruned`` holds in at most ``MOST`` groups of columns, the most influential first."""
    columns = torch.nonzero(pruned.nodes[: graph.errors.start])[:, 0]
    if len(columns) <= MOST:
        groups = [[column] for column in columns.tolist()]
    else:
        clusters = AgglomerativeClustering(n_clusters=MOST, metric="cosine", linkage="average")
        of = clusters.fit_predict(profiles(graph, columns).double().cpu().numpy())
        groups = [columns[torch.from_numpy(of == number).to(columns.device)].tolist() for number in range(MOST)]
    reach = pruned.influence.tolist()
    for group in groups:
        group.sort(key=lambda column: -reach[column])
    return sorted(groups, key=lambda group: -sum(reach[column] for column in group))


def named(graph: Graph, groups: Sequence[list[int]], words: Sequence[str], labels: Labels) -> list[Supernode]:
    """Return groups with the description of their most influential latent that has one, or their layers and word."""
    return [Supernode(_name(graph, group, words, labels), group) for group in groups]


def profiles(graph: Graph, columns: Int[Tensor, "grouped"]) -> Float[Tensor, "grouped profile"]:
    """Return what feeds each latent and what it feeds, over all paths among ``columns``, as two joined unit vectors.

    What feeds it are shares of its influence from each token and each layer's errors; what it feeds are its shares of
    the later latents' and the outputs' influence. Shares are of normalised |effects|, as in the influence.
    """
    rows = torch.cat([torch.arange(len(graph.outputs), device=columns.device), graph.row_of[columns]])
    absolute = graph.effects[rows].abs()
    share = absolute / absolute.sum(1, keepdim=True).clamp(min=1e-20)
    among = share[:, columns]
    first = len(graph.outputs)
    one = torch.eye(len(columns), dtype=share.dtype, device=share.device)
    paths = torch.linalg.inv(one - among[first:])  # a geometric series, which ends: effects go to later layers
    ends = torch.cat([share[:, graph.errors].unflatten(1, (graph.layers, -1)).sum(2), share[:, graph.embeddings]], 1)
    fed_by = paths @ ends[first:]
    feeds = torch.cat([among[:first] @ paths, paths - one]).T
    return torch.cat([torch.nn.functional.normalize(part, dim=1) for part in (fed_by, feeds)], 1)


def _name(graph: Graph, group: list[int], words: Sequence[str], labels: Labels) -> str:
    for column in group:
        if label := labels.get(graph.place(column)[:2]):
            return label if len(group) == 1 else f"{label} +{len(group) - 1}"
    layers = sorted({int(graph.layer[column]) for column in group})
    span = f"L{layers[0]}" if len(layers) == 1 else f"L{layers[0]}–{layers[-1]}"
    word = words[main_position(graph, group)]
    return f"{span} at {word.strip() or word!r} ({len(group)})"


def main_position(graph: Graph, group: Sequence[int]) -> int:
    """Return the position that most latents of a group have."""
    return Counter(int(graph.position[column]) for column in group).most_common(1)[0][0]


def supernode_metrics(
    frozen: Frozen,
    transcoders: Transcoders,
    graph: Graph,
    pruned: Pruned,
    groups: Sequence[list[int]],
    *,
    completeness: float,
    seed: int,
) -> dict[str, float]:
    """Return what the groups keep of the graph, and what ablating each does, beside random latents of the same layers.

    ``supernode_completeness`` is that with other latents counted as errors, over ``completeness``, the graph's;
    ``supernode_kl`` the KL divergence (nats, nothing frozen) without a group, the mean over groups.
    """
    if not groups:
        return {}
    rng = np.random.default_rng(seed)
    cases = [*groups, *(_matched(graph, group, rng) for group in groups)]
    ablated = [[ablate(*graph.place(column)) for column in case] for case in cases]
    kl = respond_to(frozen, transcoders, ablated, "nothing").divergences(frozen.parts.head)[1:]
    return {
        "supernodes": float(len(groups)),
        "supernode_completeness": scores(graph, pruned.nodes).completeness / completeness,
        "supernode_kl": float(kl[: len(groups)].mean()),
        "supernode_kl_random": float(kl[len(groups) :].mean()),
    }


def _matched(graph: Graph, group: list[int], rng: np.random.Generator) -> list[int]:
    """Return as many random active latents of each layer as the group has there, of those outside it."""
    layers, chosen = graph.layer.cpu().numpy(), []
    for layer, count in Counter(int(graph.layer[column]) for column in group).items():
        others = np.setdiff1d(np.flatnonzero(layers == layer), group)
        chosen += rng.permutation(others)[:count].tolist()
    return chosen


def group_of(graph: Graph, groups: Sequence[list[int]]) -> dict[tuple[int, int], int]:
    """Return the group of each (layer, latent); of a latent at several positions that of the more influential group."""
    return {graph.place(column)[:2]: number for number, group in reversed(list(enumerate(groups))) for column in group}


def stability(of_prompts: Mapping[str, Mapping[tuple[int, int], int]]) -> dict[str, float]:
    """Return how alike the groups of paraphrases' graphs are, and of how many pairs that is.

    ``of_prompts`` has what ``group_of`` gives by the prompt's name; names that differ in a number at their end are of
    paraphrases. ``supernode_stability`` is the adjusted Rand index of the latents in both, the mean over pairs.
    """
    families: dict[str, list[Mapping[tuple[int, int], int]]] = {}
    for name, groups in of_prompts.items():
        families.setdefault(re.sub(r"_\d+$", "", name), []).append(groups)
    indices = []
    for family in families.values():
        for first, second in combinations(family, 2):
            shared = sorted(first.keys() & second.keys())
            if len(shared) >= FEWEST_SHARED:
                indices.append(adjusted_rand_score([first[key] for key in shared], [second[key] for key in shared]))
    pairs = {"supernode_pairs": float(len(indices))}
    return pairs | {"supernode_stability": float(np.mean(indices))} if indices else pairs
