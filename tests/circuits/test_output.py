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


def test_the_graph_file_has_the_viewers_schema(traced, tmp_path):
    graph, pruned = traced
    first = (
        int(graph.layer[pruned.nodes[: len(graph.layer)]][0]),
        int(graph.latent[pruned.nodes[: len(graph.layer)]][0]),
    )
    made = graph_json(
        graph, pruned, WORDS, slug="a", scan="tiny", prompt="x", labels={first: "a description"}, threshold=0.8
    )
    made = json.loads(json.dumps(made, allow_nan=False))
    assert set(made) == {"metadata", "qParams", "nodes", "links"}
    assert set(made["metadata"]) == METADATA
    assert made["metadata"]["prompt_tokens"] == WORDS
    ids = [node["node_id"] for node in made["nodes"]]
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
    graph, pruned = traced
    html = graph_page(graph, pruned, WORDS, title="x < y", facts={"completeness": "0.5"}, labels={})
    assert not re.search(r"(src|href)=|@import|url\(|https?:", html)
    assert "prefers-color-scheme: dark" in html
    assert "x &lt; y" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    svg = xml.etree.ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    boxes = [element for element in svg if element.get("class", "").startswith("node")]
    assert len([box for box in boxes if "token" in box.get("class")]) == len(TOKENS)
    assert len(boxes) >= 20
    names = {box.get("data-id") for box in boxes}
    lines = [element for element in svg if element.get("class", "").startswith("edge")]
    assert lines
    assert all({line.get("data-from"), line.get("data-to")} <= names for line in lines)


def test_equal_graphs_give_equal_bytes(traced):
    graph, pruned = traced
    again = attribute(
        freeze(take_apart(tiny_gemma()), random_transcoders(), TOKENS),
        difference_of(freeze(take_apart(tiny_gemma()), random_transcoders(), TOKENS)),
        SETTINGS,
    )
    assert torch.equal(again.effects, graph.effects)
    made = [graph_page(g, prune(g, 0.8, 0.98), WORDS, title="x", facts={}, labels={}) for g in (graph, again)]
    assert made[0] == made[1]
    assert pruned.nodes.any()
