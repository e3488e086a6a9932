"""Write the page that ``dvc plots show`` and ``dvc plots diff`` fill: it works without a network.

DVC's own page loads Vega from a CDN. This one carries it (from the package vl-convert-python),
forbids every request by its content security policy, and follows the reader's light or dark theme.
DVC fills the placeholders ``{refresh_tag}`` and ``{plot_divs}``; leaving ``{scripts}`` out is what
keeps the CDN's script tags away.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import vl_convert

from transcoders.core.files import replacing

PAGE = Path(".dvc/plots_page.html")

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'
 'unsafe-eval'; style-src 'unsafe-inline'; img-src 'self' file: data: blob:">
{refresh_tag}
<title>Transcoders: plots</title>
<link rel="icon" href="data:,">
<style>
<STYLE>
</style>
<script>
<VEGA>
</script>
<script>
<SCRIPT>
</script>
</head>
<body>
<header>
<h1>Transcoders: training and evaluation</h1>
<p>Hover for values. Click a run in a legend to single it out. Drag to pan, Shift + wheel to zoom,
double-click to reset.</p>
</header>
<main>
{plot_divs}
</main>
</body>
</html>
"""

STYLE = """
:root { --page: #f4f5f7; --card: #ffffff; --line: #dfe2e7; --text: #1f2328; --quiet: #646c76; }
@media (prefers-color-scheme: dark) {
  :root { --page: #15181c; --card: #1e2227; --line: #343a42; --text: #e6e8eb; --quiet: #9aa3ad; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 110rem; background: var(--page);
  color: var(--text); font: 15px/1.4 system-ui, sans-serif; }
header { margin-bottom: 1rem; }
h1 { margin: 0; font-size: 1.4rem; }
header p { margin: 0.2rem 0 0; color: var(--quiet); }
main { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 29rem), 1fr)); }
main > div { min-width: 0; padding: 1rem; border: 1px solid var(--line) !important;
  border-radius: 8px; background: var(--card); }
.vega-embed { display: block; width: 100%; }
.vega-embed summary { opacity: 0.15; }
.vega-embed:hover summary { opacity: 1; }
.failed { color: #c0392b; white-space: pre-wrap; }
main > div:has(img) { grid-column: 1 / -1; white-space: normal !important; color: var(--quiet); }
main > div:has(img) > div { border: 0 !important; margin: 0.5rem !important; max-width: 100%; }
main p { margin: 0 0 0.3rem; }
img { max-width: min(100%, 64rem); background: #ffffff; border-radius: 4px; }
"""

SCRIPT = """
(() => {
  const embed = window.vegaEmbed;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const charts = [];

  function config() {
    const [text, quiet, grid] = dark.matches
      ? ["#e6e8eb", "#9aa3ad", "#343a42"] : ["#1f2328", "#646c76", "#e4e7eb"];
    const font = "system-ui, sans-serif";
    return {
      background: "transparent",
      font,
      title: { color: text, subtitleColor: quiet, anchor: "start", fontSize: 14, offset: 12 },
      axis: { labelColor: quiet, titleColor: text, domainColor: quiet, tickColor: quiet,
              gridColor: grid, titleFontWeight: "normal", titleFontSize: 12, labelFontSize: 11 },
      legend: { labelColor: text, titleColor: text, labelFontSize: 11, labelLimit: 260 },
      text: { color: text },
      view: { stroke: null },
    };
  }

  // Without the schema's address, which names an older Vega-Lite, there is no warning about it.
  function draw([target, { $schema, ...spec }]) {
    if (!Object.keys(spec).length) {  // DVC's answer where no revision has the table
      document.querySelector(target).textContent = target.slice(1) + ": no data in these revisions";
      return Promise.resolve();
    }
    const options = {
      mode: "vega-lite", renderer: "svg", config: config(),
      actions: { export: true, source: false, compiled: false, editor: false },
    };
    return embed(target, spec, options).catch((error) => {
      console.error(target, error);
      const box = document.querySelector(target);
      box.className = "failed";
      box.textContent = target + ": " + error.message;
    });
  }

  window.vegaEmbed = (target, spec) => {
    charts.push([target, spec]);
    return draw([target, spec]);
  };
  dark.addEventListener("change", () => charts.forEach(draw));
})();
"""


def build_page() -> str:
    """The page's HTML, with DVC's placeholders in it."""
    page = TEMPLATE.replace("<STYLE>", STYLE.strip()).replace("<SCRIPT>", SCRIPT.strip())
    return page.replace("<VEGA>", vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page to its place in the repository."""
    argparse.ArgumentParser(
        prog="python -m stages.plots_page",
        description=f"Write {PAGE}, the page of `dvc plots show` with Vega inside (no CDN).",
    ).parse_args(arguments)
    with replacing(PAGE) as temporary:
        temporary.write_text(build_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
