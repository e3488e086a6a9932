"""Text of data is text in every page that this project makes: in a real browser none of it runs, all of it shows."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from circuits.test_attribution import TOKENS, difference_of
from circuits_support import SETTINGS, random_transcoders, tiny_gemma
from features.test_page import tables
from playwright.sync_api import Browser, Page
from test_plots_page import DVC, repository, run

from transcoders.circuits.attribution import attribute
from transcoders.circuits.frozen import freeze
from transcoders.circuits.graph import prune
from transcoders.circuits.pages import graph_page, index_page
from transcoders.circuits.parts import take_apart
from transcoders.circuits.prompts import SteeredPrompt
from transcoders.circuits.steered_page import steered_page
from transcoders.circuits.supernodes import group_latents, named
from transcoders.features.page import write_page
from transcoders.figures import runs as figures
from transcoders.figures.style import colours_of, save
from transcoders.figures.tables import placed_by_sparsity

__all__ = ["repository"]
RUN = "window.taken=1"
NASTY = [
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    "<!--<script>",
    f"--><script>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f"'\"><svg onload={RUN}>",
    f"' onmouseover='{RUN}",
    f"\u2028{RUN}\u2029",
    f"');{RUN};('",
    f"${{{RUN}}}",
    "\\'\"`",
    "&lt;b&gt;&amp;",
    "]]><b>",
    f"$\\frac{{{RUN}$",
]
ALL = " ".join(NASTY)


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """A tab in which nothing of the data may have run, and no script may have failed."""
    opened = browser.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("dialog", lambda dialog: errors.append(dialog.message))
    yield opened
    assert opened.evaluate("window.taken") is None
    assert opened.locator("b, img[src='x'], svg[onload], [onmouseover]").count() == 0
    assert errors == []
    opened.close()


def shown(tab: Page) -> str:
    """Everything that stands in the page, as text."""
    return str(tab.evaluate("document.documentElement.textContent"))


def test_the_feature_browser(tab: Page, tmp_path: Path) -> None:
    table, contexts = tables(len(NASTY))
    table["description"], table["explainer"] = NASTY, ALL
    table["promoted"] = [[nasty, ALL] for nasty in NASTY]
    contexts["tokens"] = [["The ", nasty, ALL] for nasty in NASTY]
    write_page(tmp_path / "page", ALL, table, contexts, [ALL], [(ALL, ALL)])
    tab.goto((tmp_path / "page/index.html").as_uri())
    tab.wait_for_selector("html[data-ready]")
    assert all(nasty in shown(tab) for nasty in NASTY)
    for number, nasty in enumerate(NASTY):
        tab.goto((tmp_path / "page/index.html").as_uri() + f"#{number}")
        tab.wait_for_selector(f"#latent h2:text-is('Latent {number}')")
        assert tab.locator("#latent mark").first.evaluate("node => node.textContent") == nasty
        assert shown(tab).count(ALL) >= 3
        assert tab.evaluate("window.taken") is None


def test_the_circuits_pages(tab: Page, tmp_path: Path) -> None:
    frozen = freeze(take_apart(tiny_gemma()), random_transcoders(), TOKENS)
    graph = attribute(frozen, difference_of(frozen), SETTINGS)
    output = graph.outputs[0]._replace(label=ALL)
    graph = graph._replace(outputs=[output, *graph.outputs[1:]])
    labels = {(layer, latent): ALL for layer in range(4) for latent in range(40)}
    words = [NASTY[token % len(NASTY)] for token in TOKENS.tolist()]
    pruned = prune(graph, 0.8, 0.98)
    groups = named(graph, group_latents(graph, pruned), words, labels)
    html = graph_page(graph, pruned, groups, words, title=ALL, facts={ALL: ALL}, labels=labels)
    (tmp_path / "a.html").write_text(html)
    tab.goto((tmp_path / "a.html").as_uri())
    tab.locator("g.node.group").first.click()
    assert tab.locator("details[open] li").count() >= 1
    tab.locator("g.node.group").first.click()
    assert tab.locator("details[open]").count() == 0
    tab.locator("g.node.latent").first.click()
    assert all(word.replace(" ", "␣") in shown(tab) or word in shown(tab) for word in words)
    assert shown(tab).count(ALL) > 10
    assert tab.title() == " ".join(ALL.replace("\u2028", " ").replace("\u2029", " ").split()) or RUN in tab.title()
    rows = [{"variant": nasty, "prompt": nasty, "task": nasty, "difference": 1.0} for nasty in NASTY]
    (tmp_path / "index.html").write_text(index_page(rows, ALL))
    tab.goto((tmp_path / "index.html").as_uri())
    assert all(shown(tab).count(nasty) >= 3 for nasty in NASTY)
    assert tab.locator("a").count() == len(NASTY)
    assert tab.locator("a").nth(7).get_attribute("href") == f"{NASTY[7]}-{NASTY[7]}.html"


def test_the_page_of_steered_texts(tab: Page, tmp_path: Path) -> None:
    prompts = [SteeredPrompt(name=f"p{i}", text=nasty, answer=nasty) for i, nasty in enumerate(NASTY)]
    facts = {"transcoders": ALL, "probability": 0.5, "kl": 0.1, "perplexity": 3.0, "latents": ALL}
    rows = [
        {"prompt": f"p{i}", "group": group, "dose": 1.0, "text": nasty, **facts}
        for i, nasty in enumerate(NASTY)
        for group in ("none", "chosen", "random")
    ]
    (tmp_path / "s.html").write_text(steered_page(pd.DataFrame(rows), prompts, ALL))
    tab.goto((tmp_path / "s.html").as_uri())
    assert all(shown(tab).count(nasty) >= 4 for nasty in NASTY)
    assert tab.locator("h2").count() == len(NASTY)


def test_the_figures(tab: Page, tmp_path: Path) -> None:
    names = [*NASTY, "topk-9-0"]
    table = pd.DataFrame(
        {
            "name": names,
            "kind": ["official"] * len(NASTY) + ["trained"],
            "variant": names,
            "layer": 9,
            "l0": [30.0 + i for i in range(len(names))],
            "fvu": 0.3,
            "loss_recovered": 0.9,
        }
    )
    colours = colours_of(["topk-9-0"])
    table = placed_by_sparsity(table, {})
    for name, draw in (("comparison", figures.comparison), ("frontier", figures.frontier)):
        save(draw(table, colours), tmp_path / name)
        tab.goto((tmp_path / f"{name}.svg").as_uri())
        assert tab.locator("script").count() == 0
        assert tab.evaluate("window.taken") is None


def test_the_page_of_plots(tab: Page, repository: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(repository, tmp_path / "repository"))
    names = [nasty for nasty in NASTY if "<" not in nasty and ">" not in nasty]  # as params.yaml allows them
    assert len(names) > 4
    table = pd.read_csv(root / "plots/data/comparison.csv")
    more = [{**table.iloc[-1], "name": name, "variant": name} for name in names]
    pd.concat([table, pd.DataFrame(more)]).to_csv(root / "plots/data/comparison.csv", index=False)
    run(str(DVC), "plots", "show", "--out", "shown", cwd=root)
    tab.goto((root / "shown/index.html").as_uri())
    tab.wait_for_selector("#fvu svg")
    drawn = tab.locator("#fvu svg").first.evaluate("node => node.outerHTML")
    assert "');window.taken=1;('" in drawn
