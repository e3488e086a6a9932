"""What a dictionary made of planted families: absorbed parents, split parents, hedged ones, and lost ones."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from transcoders.activations.store import CHUNK_ROWS
from transcoders.dictionary.transcoder import Transcoder
from transcoders.planted.families import PARENT, Families
from transcoders.planted.kinds import Kind
from transcoders.planted.store import IN, PlantedStore

FOUND = 0.7
"""Cosine of a decoder row to its parent's direction from which on the dictionary has the parent."""
ALIKE = 0.5
"""Cosine from which on a latent is one of a feature's latents: a child's that absorbed its parent has 0.71."""
CHILDREN_KNOWN = 3
"""A parent is lost if the dictionary has so many of its children (all, if there are fewer), but not the parent."""


class Tokens(NamedTuple):
    """Held-out tokens with features in them."""

    x: Float[Tensor, "tokens d_in"]
    parent: Bool[Tensor, "tokens families"]
    """Whether the parent fires."""
    child: Bool[Tensor, "tokens families"]
    """Whether any child does."""


class Counts(NamedTuple):
    """Hold, for each prefix and family, on how many tokens the parent fires, and on how many its latent is silent."""

    alone: Int[Tensor, "prefixes families"]
    silent_alone: Int[Tensor, "prefixes families"]
    with_child: Int[Tensor, "prefixes families"]
    silent_with_child: Int[Tensor, "prefixes families"]


def planted_tokens(store: PlantedStore, documents: NDArray[np.bool_], device: torch.device) -> Iterator[Tokens]:
    """Yield the tokens of the chosen ``documents`` (a mask over ids), a chunk of the store at a time."""
    families = store.families
    for start in range(0, store.tokens, CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, store.tokens)
        rows = start + np.flatnonzero(store.members(documents, start, stop))
        if len(rows) == 0:
            continue
        fires = torch.zeros(len(rows), len(families.rate), families.members, dtype=torch.bool)
        firings = families.firings(rows, store.draw)
        fires[firings.row, firings.family, firings.member] = True
        x = store.chosen(IN, start, stop, rows)
        yield Tokens(x.to(device), fires[:, :, PARENT], fires[:, :, PARENT + 1 :].any(2))


@torch.no_grad()
def measure(model: Transcoder, tokens: Iterator[Tokens], families: Families) -> pd.DataFrame:
    """Return a row for each prefix (ascending; the last has all latents) and family.

    Absorption is P(the parent's latent is silent | parent and child) - P(it is silent | parent alone), NaN where the
    parent was not found or never fired one way. Contamination is the mean cosine of its children's latents to the
    parent's direction, hedging the cosine of the parent's latent to the sum of its children's, splitting the number
    of latents, beyond the parent's and the children's own, that are ``ALIKE`` the parent.
    """
    sizes = model.config.prefixes or (model.config.d_hidden,)
    directions = families.directions().to(model.W_dec)
    tables, latents = [], []
    for size in sizes:
        table, parents = _of_decoder(model.W_dec[:size], directions, families)
        tables.append(table.assign(prefix=size))
        latents.append(parents)
    counts = _count(model, tokens, torch.stack(latents))
    for number, table in enumerate(tables):
        of_prefix = Counts(*(part[number] for part in counts))
        silent = of_prefix.silent_with_child / of_prefix.with_child - of_prefix.silent_alone / of_prefix.alone
        table["absorption"] = np.where(table["found"], silent.numpy(), np.nan)
        table["alone"], table["with_child"] = of_prefix.alone.numpy(), of_prefix.with_child.numpy()
    return pd.concat(tables, ignore_index=True)


def _of_decoder(
    decoder: Float[Tensor, "latents d_out"], directions: Float[Tensor, "families members d_out"], families: Families
) -> tuple[pd.DataFrame, Int[Tensor, "families"]]:
    """Return what decoder rows alone tell of each family, and the latent that is most parallel to each parent."""
    count, members, _ = directions.shape
    cosines = (normalize(decoder) @ directions.flatten(0, 1).T).view(len(decoder), count, members)
    best = cosines.max(0)  # [families, members]
    parents, children = best.indices[:, PARENT], best.indices[:, PARENT + 1 :]
    found = best.values[:, PARENT] >= FOUND
    known = best.values[:, PARENT + 1 :] >= ALIKE
    of_parent = cosines[:, :, PARENT]  # [latents, families]
    contamination = (of_parent.T.gather(1, children) * known).sum(1) / known.sum(1)
    others = of_parent >= ALIKE
    others[parents, torch.arange(count)] = False
    others = others.scatter(0, children.T, False)
    together = normalize(directions[:, PARENT + 1 :].sum(1), dim=-1)
    hedging = (normalize(decoder[parents]) * together).sum(1)
    with_children = families.kind.to(known.device) != Kind.CHILDLESS
    lost = ~found & (known.sum(1) >= min(CHILDREN_KNOWN, members - 1)) & with_children
    columns = {
        "family": torch.arange(count),
        "kind": families.kind,
        "rate": families.rate,
        "cosine": best.values[:, PARENT],
        "found": found,
        "children_found": known.sum(1),
        "contamination": torch.where(with_children, contamination, torch.nan),
        "splitting": torch.where(found, others.sum(0).to(hedging), torch.nan),
        "hedging": torch.where(found & with_children, hedging, torch.nan),
        "lost": lost,
    }
    return pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()}), parents


def _count(model: Transcoder, tokens: Iterator[Tokens], latents: Int[Tensor, "prefixes families"]) -> Counts:
    """Count on ``tokens`` when each family's parent fires, and when its latent in each prefix does not."""
    column = torch.full((model.config.d_hidden,), -1, device=latents.device)
    watched = latents.unique()
    column[watched] = torch.arange(len(watched), device=latents.device)
    sums = [torch.zeros(latents.shape, dtype=torch.long) for _ in Counts._fields]
    for part in tqdm(tokens, desc="planted", unit="chunk", leave=False):
        active = model.encode(part.x)
        place = column[active.indices]
        fired = (place >= 0) & (active.values > 0)
        on = torch.zeros(len(part.x), len(watched), dtype=torch.bool, device=place.device)
        on[active.rows()[fired], place[fired]] = True
        silent = ~on[:, column[latents]].transpose(0, 1).cpu()  # [prefixes, tokens, families]
        alone, with_child = part.parent & ~part.child, part.parent & part.child
        for total, mask in zip(sums, (alone, alone & silent, with_child, with_child & silent), strict=True):
            total += mask.sum(-2)
    return Counts(*sums)
