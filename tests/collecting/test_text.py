import json

import pandas as pd
import pytest

from transcoders.collecting.settings import TextSettings
from transcoders.collecting.text import documents
from transcoders.core.errors import UserError


def test_the_packaged_wikipedia_is_real_articles():
    found = list(documents(TextSettings()))
    assert len(found) > 100
    assert sum(len(d.text) for d in found) > 3_000_000
    assert len({d.title for d in found}) == len(found)
    anarchism = next(d for d in found if d.title == "Anarchism")
    assert "political philosophy" in anarchism.text
    assert "{{" not in anarchism.text


def read(path, **settings):
    return [d.text.strip() for d in documents(TextSettings(source="file", path=str(path), **settings))]


def test_files(tmp_path):
    texts = ["one\ntwo", "three"]
    (tmp_path / "a.txt").write_text("\n\none\ntwo\n\n\nthree")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    pd.DataFrame({"text": texts}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert read(tmp_path / name) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "there is no file"),
        ("a.csv", "x", r"none of \.txt, \.jsonl, \.parquet"),
        ("a.jsonl", '{"text": "a"}\nnot json', "line 2 of"),
        ("a.jsonl", '{"body": "a"}', "the field 'text'"),
        ("a.parquet", "nonsense", "is not a parquet file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_a_source_without_its_path_says_so():
    with pytest.raises(UserError, match=r"collect\.text\.path: is missing"):
        documents(TextSettings(source="hub"))
