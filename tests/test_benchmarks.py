"""What `python -m benchmarks` writes: tables into the pages that have a place for them, and figures."""

import pytest

from benchmarks.__main__ import HEADERS, write
from benchmarks.word_categories import LayerScores, draw


def test_a_table_is_replaced_on_the_page_that_has_its_place_and_nothing_else_changes(tmp_path):
    (tmp_path / "a.md").write_text("# A\n<!-- quality -->\nold\n<!-- /quality -->\nend\n")
    (tmp_path / "b.md").write_text("# B\n<!-- letters -->\nold\n<!-- /letters -->\nend\n")
    untouched = (tmp_path / "a.md").read_bytes()
    write({"letters": [r"| 0 | a\b |"]}, tmp_path)
    assert (tmp_path / "a.md").read_bytes() == untouched
    header, rule = f"| {HEADERS['letters']} |", "| --- | --- | --- | --- |"
    table = "\n".join([header, rule, r"| 0 | a\b |"])
    assert (tmp_path / "b.md").read_text() == f"# B\n<!-- letters -->\n{table}\n<!-- /letters -->\nend\n"


def test_a_table_without_a_place_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("<!-- letters -->\n")
    with pytest.raises(SystemExit, match=r"no page in .* has <!-- letters -->"):
        write({"letters": []}, tmp_path)


def test_the_figure_of_letters_has_a_line_for_each_column_of_the_table():
    lines = draw([LayerScores(0.9, 0.5, 0.1), LayerScores(0.8, 0.4, 0.2)], "letters").axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[0.9, 0.8], [0.5, 0.4], [0.1, 0.2]]
