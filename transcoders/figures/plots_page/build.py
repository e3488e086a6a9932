"""Putting the page together from its parts."""

from pathlib import Path

import vl_convert

HERE = Path(__file__).parent


def build_page() -> str:
    """Return the page's HTML, with DVC's placeholders in it."""
    page, style, script = ((HERE / name).read_text().strip() for name in ("page.html", "style.css", "script.js"))
    page = page.replace("<STYLE>", style).replace("<SCRIPT>", script) + "\n"
    return page.replace("<VEGA>", vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
