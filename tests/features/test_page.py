"""The feature browser in a real browser, opened from disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from transcoders.features.page import CHUNK, write_page

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
MANY = 10_000


def tables(latents: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Latent i fires on word i; number 7 is made of markup."""
    names = [HOSTILE if i == 7 else f"word{i}" for i in range(latents)]
    table = pd.DataFrame(
        {
            "latent": range(latents),
            "group": [1 + (i >= latents // 2) for i in range(latents)],
            "density": [(i + 1) / (2 * latents) for i in range(latents)],
            "firings": 100,
            "mean": 1.0,
            "max": 2.0,
            "bin_width": 0.1,
            "histogram": [[0, 1, 5, 2] + [0] * 28] * latents,
            "description": [f"fires on “{name}” (100%)" for name in names],
            "explainer": "statistics",
            "score": [None if i == 3 else 0.5 + 0.5 * i / latents for i in range(latents)],
            "scored_on": 40,
            "promoted": [[f" {name}", "\n"] for name in names],
            "promoted_by": [[2.0, 1.0]] * latents,
            "suppressed": [["no"]] * latents,
            "suppressed_by": [[-1.0]] * latents,
            "nearest": [[(i + 1) % latents] for i in range(latents)],
            "nearest_cosine": [[0.4]] * latents,
            "parents": [[0] if i >= latents // 2 else [] for i in range(latents)],
            "parents_share": [[0.8] if i >= latents // 2 else [] for i in range(latents)],
            "children": [[latents - 1] if i == 0 else [] for i in range(latents)],
            "children_share": [[0.8] if i == 0 else [] for i in range(latents)],
        }
    ).astype({"score": float})
    contexts = pd.DataFrame(
        {
            "latent": range(latents),
            "kind": "top",
            "document": 0,
            "context": 0,
            "tokens": [["The ", name, " stands"] for name in names],
            "values": [[0.0, 2.0, 0.0]] * latents,
        }
    )
    return table, contexts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "run"
    write_page(path, "plt-9-0", *tables(MANY), [HOSTILE], [("tokens", "1,000")])
    return path


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Page]:
    """The page, offline; what it complains of fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1300, "height": 900})
    opened = context.new_page()
    complaints: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    opened.on("console", hear)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("requestfailed", lambda request: complaints.append(request.url))
    opened.goto((folder / "index.html").as_uri())
    opened.wait_for_selector("html[data-ready]")
    yield opened
    context.close()
    assert complaints == []


def listed(page: Page) -> list[int]:
    return [int(text.lstrip("#")) for text in page.locator("#list .id").all_inner_texts()]


def test_it_opens_with_all_latents_and_little_of_the_data(page: Page) -> None:
    assert page.inner_text("#count") == "10,000 latents"
    assert set(listed(page)[:10]) == set(range(MANY - 10, MANY))
    assert len(listed(page)) < 200
    assert page.locator("script[src^='data/']").count() == 1
    assert page.title() == "Latents of plt-9-0"


def test_search_finds_by_word_number_and_promoted_token(page: Page) -> None:
    page.fill("#search", "word4321")
    assert listed(page) == [4321]
    assert page.inner_text("#count") == "1 latent"
    page.fill("#search", "no such thing")
    assert "No latent matches" in page.inner_text("#count")


def test_enter_in_the_search_field_opens_the_first_hit(page: Page) -> None:
    page.fill("#search", "word77")
    page.press("#search", "Enter")
    first = listed(page)[0]
    expect(page.locator("#latent h2")).to_have_text(f"Latent {first}")
    page.keyboard.press("Escape")
    page.fill("#search", "no such thing")
    page.press("#search", "Enter")
    expect(page.locator("#latent h2")).to_have_text(f"Latent {first}")


def test_a_latent_without_a_score_says_why_and_small_shares_are_plain_numbers(page: Page) -> None:
    page.fill("#search", "word3")
    page.select_option("#sort", "latent")
    page.click("#direction")
    assert page.inner_text("#list li:first-child .right").split() == ["too", "rare", "0.02", "%"]
    page.click("#list li:first-child a")
    expect(page.locator("#latent h2")).to_have_text("Latent 3")
    assert "none, too rare: it fires in fewer than 4 contexts of unseen documents" in page.inner_text("#latent")
    shares = page.evaluate("[8e-5, 8.04e-8, 0, 1, 0.123].map(percent)")
    assert shares == ["0.008 %", "0.000008 %", "0 %", "100 %", "12 %"]


def test_sorting_and_groups(page: Page) -> None:
    page.select_option("#sort", "density")
    page.click("#direction")
    assert listed(page)[:3] == [0, 1, 2]
    page.select_option("#group", "2")
    assert listed(page)[0] == MANY // 2
    assert page.inner_text("#count") == "5,000 latents"
    page.select_option("#group", "")
    page.select_option("#sort", "score")
    assert listed(page)[:4] == [0, 1, 2, 4]  # number 3 has no score and comes last
    page.click("#next")
    assert page.inner_text("#place").startswith("101")


def test_a_latent_opens_with_its_contexts_effects_and_family(page: Page) -> None:
    page.fill("#search", "word9999")
    page.click("#list a")
    page.wait_for_selector("#latent h2")
    text = page.inner_text("#latent")
    for part in ("Latent 9999", "The word9999 stands", "word9999", "cos 0.40", "80 %", "2 of 2", "2 on “word9999”"):
        assert part in text
    assert page.locator("#latent mark").inner_text() == "word9999"
    assert page.locator("#latent svg rect").count() == 4
    page.click("#latent a[href='#0'] >> nth=-1")
    expect(page.locator("#latent h2")).to_have_text("Latent 0")
    assert page.locator("#latent a[href='#9999']").count() == 1
    assert page.locator("script[src^='data/']").count() == 3


def test_text_from_data_is_never_markup(page: Page) -> None:
    page.fill("#search", "onerror")
    assert listed(page) == [7]
    page.click("#list a")
    page.wait_for_selector("#latent mark")
    assert page.locator("#latent mark").inner_text() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.title() == "Latent 7 of plt-9-0"


def test_it_works_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("word12")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#latent h2")
    second = listed(page)[1]
    assert page.inner_text("#latent h2") == f"Latent {second}"
    assert page.evaluate("document.activeElement.tagName") == "H2"
    page.keyboard.press("j")
    third = listed(page)[2]
    expect(page.locator("#latent h2")).to_have_text(f"Latent {third}")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.latent") == str(third)


def test_a_screen_reader_is_told_what_is_what(page: Page) -> None:
    page.goto(page.url + "#42")
    page.wait_for_selector("#latent h2")
    snapshot = page.locator("body").aria_snapshot()
    for part in (
        "searchbox",
        'combobox "Sort by"',
        'navigation "All latents"',
        "main",
        "status",
        'img "Histogram of 8',
    ):
        assert part in snapshot


def test_a_page_without_its_data_says_what_is_missing(browser: Browser, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / f"data/{42 // CHUNK:04d}.js").unlink()
    page = browser.new_page()
    page.goto((copy / "index.html").as_uri() + "#42")
    page.wait_for_selector("[role=alert]")
    assert "data/0001.js is missing: copy the whole folder" in page.inner_text("[role=alert]")
    page.close()
