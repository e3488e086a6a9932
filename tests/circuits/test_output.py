"""Graph files have the viewer's schema; the picture is one page that needs nothing else."""

import json
import re
import xml.etree.ElementTree

import pytest
import torch
from circuits_support import SETTINGS, random_transcoders, tiny_gemma
from test_attribution import TOKENS, difference_of

from transcoders.circuits.attribution import attribute
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import prune
from transcoders.circuits.pages import graph_page
from transcoders.circuits.parts import take_apart
from transcoders.circuits.supernodes import MOST, group_latents, named
from transcoders.circuits.viewer import graph_json, write_index

NODE = {  # of circuit-tracer 0.5.0, frontend/graph_models.py: Node
    "node_id": str,
    "feature": int,
    "layer": str,
    "ctx_idx": int,
    "feature_type": str,
    "token_prob": float,
    "is_target_logit": bool,
    "run_idx": int,
    "reverse_ctx_idx": int,
    "jsNodeId": str,
    "clerp": str,
    "influence": (float, type(None)),
    "activation": (float, type(None)),
}
METADATA = {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold", "schema_version"}


WORDS = ["<b>" if token == 7 else f" t{token}" for token in TOKENS.tolist()]
"""The tokens as text, with markup in it."""


@pytest.fixture(scope="module")
def traced():
    frozen = freeze(take_apart(tiny_gemma()), random_transcoders(), TOKENS)
    graph = attribute(frozen, difference_of(frozen), SETTINGS)
    return graph, prune(graph, 0.8, 0.98)


def page_of(graph, **facts):
    pruned = prune(graph, 0.8, 0.98)
    groups = named(graph, group_latents(graph, pruned), WORDS, {})
    return graph_page(graph, pruned, groups, WORDS, title="x < y", facts=facts, labels={})


def test_the_graph_file_has_the_viewers_schema(traced, tmp_path):
    graph, pruned = traced
    first = (
        int(graph.layer[pruned.nodes[: len(graph.layer)]][0]),
        int(graph.latent[pruned.nodes[: len(graph.layer)]][0]),
    )
    made = graph_json(
        graph,
        pruned,
        WORDS,
        slug="a",
        scan="tiny",
        prompt="x",
        labels={first: "a description"},
        groups={"one": torch.nonzero(pruned.nodes[: len(graph.layer)])[:2, 0].tolist()},
        threshold=0.8,
    )
    made = json.loads(json.dumps(made, allow_nan=False))
    assert set(made) == {"metadata", "qParams", "nodes", "links"}
    assert set(made["metadata"]) == METADATA
    assert made["metadata"]["prompt_tokens"] == WORDS
    ids = [node["node_id"] for node in made["nodes"]]
    ((name, *members),) = made["qParams"]["supernodes"]
    assert name == "one"
    assert len(members) == 2
    assert set(members) == set(made["qParams"]["pinnedIds"]) < set(ids)
    assert len(set(ids)) == len(ids) == int(pruned.nodes.sum()) + 1
    for node in made["nodes"]:
        assert set(node) == set(NODE)
        assert all(isinstance(node[key], kind) for key, kind in NODE.items()), node
    assert {node["feature_type"] for node in made["nodes"]} == {
        "cross layer transcoder",
        "mlp reconstruction error",
        "embedding",
        "logit",
    }
    assert len(made["links"]) == int(pruned.edges.sum())
    assert all(link["source"] in ids and link["target"] in ids and link["weight"] for link in made["links"])
    assert "a description" in {node["clerp"] for node in made["nodes"]}
    logit = next(node for node in made["nodes"] if node["feature_type"] == "logit")
    assert re.fullmatch(r'Output "a − b" \(p=0\.100\)', logit["clerp"]), "the viewer reads p from the label"
    into = [link for link in made["links"] if link["target"] == logit["node_id"]]
    best = max(into, key=lambda link: abs(link["weight"]))
    assert abs(best["weight"]) == pytest.approx(float(graph.effects[0].abs().max()), rel=1e-4)
    write_index(tmp_path, [made])
    assert json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"][0]["slug"] == "a"


def test_the_picture_is_one_page_without_network(traced):
    graph, _ = traced
    html = page_of(graph, completeness="0.5")
    assert not re.search(r"(src|href)=|@import|url\(|https?:", html)
    assert "prefers-color-scheme: dark" in html
    assert "x &lt; y" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    drawn = [xml.etree.ElementTree.fromstring(svg) for svg in re.findall("<svg.*?</svg>", html, re.DOTALL)]
    assert len(drawn) == 2, "groups, then latents"
    assert 1 < len([box for box in drawn[0] if "group" in box.get("class", "")]) <= MOST
    assert html.count("<details ") == len([box for box in drawn[0] if "group" in box.get("class", "")])
    assert all(_names(svg)[0] and _names(svg)[1] <= _names(svg)[2] for svg in drawn), "lines join boxes"
    svg = drawn[1]
    boxes = [element for element in svg if element.get("class", "").startswith("node")]
    assert len([box for box in boxes if "token" in box.get("class")]) == len(TOKENS)
    assert len(boxes) >= 20


def _names(svg):
    """Lines, what they join, and the names of the boxes."""
    boxes = {element.get("data-id") for element in svg if element.get("class", "").startswith("node")}
    lines = [element for element in svg if element.get("class", "").startswith("edge")]
    return lines, {end for line in lines for end in (line.get("data-from"), line.get("data-to"))}, boxes


def test_equal_graphs_give_equal_bytes(traced):
    graph, pruned = traced
    again = attribute(
        freeze(take_apart(tiny_gemma()), random_transcoders(), TOKENS),
        difference_of(freeze(take_apart(tiny_gemma()), random_transcoders(), TOKENS)),
        SETTINGS,
    )
    assert torch.equal(again.effects, graph.effects)
    assert page_of(graph) == page_of(again)
    assert pruned.nodes.any()
