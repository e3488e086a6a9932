"""``dvc plots show`` and ``diff`` on the project's own plots, templates and page, in a browser."""

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from transcoders.figures.plots_page.build import build_page

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DVC = shutil.which("dvc", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

CURVES = """run,step,tokens,loss,nmse,l0,dead_fraction,learning_rate,validation_nmse
topk-9-0,1,1024,0.9,0.8,32,0,0.001,
topk-9-0,2,2048,0.6,0.5,32,0,0.001,0.55
nested-9-0,1,1024,1.0,0.9,32,0.1,0.001,
nested-9-0,2,2048,0.7,0.6,32,0.2,0.001,0.65
"""
DENSITY = """run,log10_frequency,latents,share
topk-9-0,-inf,20,0.2
topk-9-0,-1.5,50,0.5
topk-9-0,-0.5,30,0.3
nested-9-0,-inf,0,0
nested-9-0,-1.5,60,0.6
nested-9-0,-0.5,40,0.4
"""
COMPARISON = """name,kind,variant,layer,l0,fvu,loss_recovered,way,sparsity
topk-9-0,trained,topk,9,32,0.24,0.93,topk-9,32
nested-9-0,trained,nested,9,32,0.26,0.92,nested-9,32
nested_k8-9-0,trained,nested_k8,9,8,0.36,0.82,nested-9,8
mean-9,baseline,mean,9,,1.0,0.0,mean-9,
pca_rank_32-9,baseline,pca_rank_32,9,,0.3,0.6,pca-9,32
pca_rank_8-9,baseline,pca_rank_8,9,,0.5,0.4,pca-9,8
untrained-9,baseline,untrained,9,32,1.2,-0.1,untrained-9,32
scope-9,official,jumprelu,9,60,0.2,0.95,scope-9,60
"""
PREFIXES = """run,kind,layer,latents,k,l0,fvu,loss_recovered,group_dead_fraction,name
topk-9-0,trained,9,5120,32,32,0.24,0.93,0.02,topk-9-0
nested-9-0,trained,9,640,16,16,0.4,0.8,0.01,nested-9-0
nested-9-0,trained,9,5120,32,32,0.26,0.92,0.03,nested-9-0
topk-9-0,pruned,9,640,16,16,0.7,0.6,,topk-9-0 pruned
"""
SCORES = """run,score,latents,share
topk-9-0,0.475,1,0.25
topk-9-0,0.725,3,0.75
nested-9-0,0.475,2,0.5
nested-9-0,0.725,2,0.5
"""
MARKS = {  # what each chart must at least draw, as Vega names the groups of its SVG
    "training_error": "mark-line",
    "validation_error": "mark-line",
    "l0": "mark-line",
    "dead_fraction": "mark-line",
    "learning_rate": "mark-line",
    "training_error_by_step": "mark-line",
    "firing_density": "mark-area",
    "detection_score": "mark-area",
    "fvu": "mark-rect",
    "loss_recovered": "mark-rect",
    "l0_fvu": "mark-symbol",
    "l0_loss_recovered": "mark-symbol",
    "prefixes_fvu": "mark-line",
    "prefixes_loss_recovered": "mark-line",
    "dead_by_group": "mark-symbol",
}
DRAWN = r'<g class="{}[^"]*role-mark[^>]*><path [^>]*\bd="M'


def run(*command: str, cwd: Path) -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository with this project's plots, and two revisions of small results."""
    assert DVC, "dvc is a dependency of this project; install the environment"
    root = tmp_path_factory.mktemp("repository")
    for command in (
        ["git", "init", "-q", "."],
        [DVC, "init", "-q"],
        [DVC, "config", "plots.html_template", "../plots/template.html"],
    ):
        run(*command, cwd=root)
    shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
    (root / "plots").mkdir()
    (root / "plots/template.html").write_text(build_page(), encoding="utf-8")
    plots = YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"]
    images = [plot for plot in plots if isinstance(plot, str)]
    YAML(typ="safe").dump({"plots": plots}, root / "dvc.yaml")
    for path, content in {
        "curves.csv": CURVES,
        "density.csv": DENSITY,
        "comparison.csv": COMPARISON,
        "prefixes.csv": PREFIXES,
        "scores.csv": SCORES,
    }.items():
        (root / "plots/data").mkdir(parents=True, exist_ok=True)
        (root / "plots/data" / path).write_text(content)
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        write_image(root / image)
    run("git", "add", "-A", cwd=root)
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    run("git", *author, "commit", "-q", "-m", "first", cwd=root)
    (root / "plots/data/curves.csv").write_text(CURVES.replace("0.6,0.5", "0.4,0.3"))
    return root


def write_image(path: Path) -> None:
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(path)


@pytest.fixture(scope="module", params=["show", "diff"])
def page(request: pytest.FixtureRequest, repository: Path) -> Path:
    """The HTML that the command writes."""
    run(str(DVC), "plots", request.param, "--out", request.param, cwd=repository)
    return repository / request.param / "index.html"


def test_every_plot_is_on_the_page_and_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    for name in MARKS:
        assert f"vegaEmbed('#{name}'" in text
    assert "<img src=" in text
    assert "{plot_divs}" not in text
    assert "{refresh_tag}" not in text
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=[\"']?(https?:)?//", text)
    assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", text)
    assert "default-src 'none'" in text


def test_a_worktree_shows_plots_without_any_set_up(repository: Path, tmp_path: Path) -> None:
    run("git", "worktree", "add", "-q", "--detach", str(tmp_path / "other tree"), cwd=repository)
    run(str(DVC), "plots", "show", cwd=tmp_path / "other tree")
    assert "default-src 'none'" in (tmp_path / "other tree/dvc_plots/index.html").read_text()
    configured = re.search(r"html_template = (\S+)", (ROOT / ".dvc/config").read_text())
    assert configured, "DVC's own page loads scripts from the network"
    assert (ROOT / ".dvc" / configured.group(1)).is_file()


def test_the_placeholders_occur_once_so_that_dvc_leaves_vega_itself_alone() -> None:
    template = build_page()
    assert template.count("{plot_divs}") == 1
    assert template.count("{refresh_tag}") == 1
    assert "{scripts}" not in template
    assert template.count("</script>") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium to draw the page")
def test_a_browser_draws_every_chart_without_an_error(page: Path, tmp_path: Path) -> None:
    dom, console = render(page, tmp_path)
    for name, mark in MARKS.items():
        chart = re.search(rf'<div id="{name}".*?</svg>', dom, re.DOTALL)
        assert chart, f"{name} holds no chart"
        assert re.search(DRAWN.format(mark), chart.group()), f"{name} draws no {mark}"
        assert "NaN" not in chart.group()
    assert 'class="failed"' not in dom
    assert console == []


def render(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's DOM after its scripts ran with no network, and the lines on the console."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--virtual-time-budget=10000",
            "--window-size=1400,1000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return html.unescape(done.stdout.rpartition("</header>")[2]), console


@pytest.mark.skipif(CHROMIUM is None, reason="needs the program chromium to draw the page")
def test_a_table_that_is_missing_is_told_in_its_place(repository: Path, tmp_path: Path) -> None:
    table = repository / "plots/data/prefixes.csv"
    content = table.read_text()
    table.unlink()
    try:
        run(str(DVC), "plots", "show", "--out", "missing", cwd=repository)
    finally:
        table.write_text(content)
    dom, console = render(repository / "missing/index.html", tmp_path)
    assert "prefixes_fvu: no data in these revisions" in dom
    assert 'class="failed"' not in dom
    assert console == []
