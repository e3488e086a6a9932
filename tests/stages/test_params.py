import shutil
from pathlib import Path

import pytest
from pydantic import Field
from ruamel.yaml import YAML

from stages.common.params import StageParams
from stages.preset import AllParams, apply_preset
from transcoders.core.errors import UserError
from transcoders.training.settings import VariantSettings

ROOT = Path(__file__).parents[2]


def changed(**changes):
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    for key, value in changes.items():
        *path, last = key.split("__")
        node = content
        for part in path:
            node = node[part]
        node[last] = value
    return content


def test_the_delivered_parameters_are_valid():
    assert AllParams.read(ROOT / "params.yaml").runs.variants


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__learnin_rate": 1}, r"train\.learnin_rate: unknown parameter.*known: .*learning_rate"),
        ({"trian": {}}, r"trian: unknown parameter"),
        ({"variants__plt__stages": 3}, r"variants\.plt\.stages: unknown parameter.*known: .*phase_fractions"),
        ({"train__k": "many"}, r"train\.k: 'many' is wrong"),
        ({"train__k": 0}, r"train\.k: 0 is wrong"),
        ({"train__k": 64, "train__d_hidden": 32}, r"params.yaml: train\.k: 64 is more than train\.d_hidden 32"),
        ({"train__d_hidden": "x8"}, r"train\.d_hidden"),
        ({"runs__layers": [3]}, r"runs\.layers: 3 is not in collect\.layers"),
        ({"runs__variants": ["tpok"]}, r"runs\.variants: 'tpok' is not defined"),
        ({"collect__dtype": "int4"}, r"collect\.dtype: 'int4' is wrong"),
        ({"collect__codec": "gzip"}, r"collect\.codec: 'gzip' is wrong.*'zstd' or 'blosc-lz4'"),
        ({"collect__outputs": "none"}, r"collect\.outputs: 'none' is wrong.*'stored' or 'recomputed'"),
        ({"collect__url": "bucket/x"}, r"collect\.url: 'bucket/x' is no URL such as s3://bucket/prefix"),
        ({"collect__text": {"source": "hub"}}, r"collect\.text\.path: is missing; source 'hub' needs it"),
        ({"collect__text": {"source": ["file", "summaries"]}}, r"collect\.text\.path: is missing; source 'file' needs"),
        ({"collect__text": {"source": "wiki"}}, r"collect\.text\.source\.0: 'wiki' is wrong.*'summaries', 'wikipedia'"),
        ({"collect__text": {"source": []}}, r"collect\.text\.source: \[\] is wrong"),
        ({"collect__text": {"source": ["hub", "wikipedia"], "path": "a/b"}}, r"collect\.text\.source: .*mixes 'hub'"),
        ({"collect__text": {"source": ["wikipedia", "wikipedia"]}}, r"collect\.text\.source: .*names one twice"),
        (
            {"collect__text": {"source": "wikipedia", "language": "fr"}},
            r"collect\.text\.language: 'fr' is of summaries",
        ),
        ({"split__test": 0.9, "split__validation": 0.2}, r"split: validation and test together must be below 1"),
        ({"collect__max_norm": 8.0, "collect__outputs": "recomputed"}, r"collect\.max_norm: needs y to be stored"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(changes, message):
    with pytest.raises(UserError, match=message) as error:
        AllParams.parse(changed(**changes), "params.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/x",
        "https://host/x?signature=secret",
        "https://secret@host/v1",
        "HTTP://key:secret@host/v1",
        "http://host/v1#secret",
    ],
)
def test_urls_with_secrets_are_refused_and_not_shown(url):
    for changes in ({"collect__url": url}, {"compare__official": [url]}, {"features__describe__openai__url": url}):
        with pytest.raises(UserError, match="a URL must hold no password, no token and no query") as error:
            AllParams.parse(changed(**changes), "params.yaml")
        assert "secret" not in str(error.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError, match=r"collect\.tokens.*train\.k"):
        AllParams.parse(changed(train__k=-1, collect__tokens=-1), "params.yaml")


def test_a_missing_section_is_named():
    content = changed()
    del content["train"]
    with pytest.raises(UserError, match="train: is missing"):
        AllParams.parse(content, "params.yaml")


def test_numbers_are_yaml_1_2(tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("learning_rate: 7.0e-4", "learning_rate: 5e-05")
    (tmp_path / "params.yaml").write_text(text)
    assert AllParams.read(tmp_path / "params.yaml").train.learning_rate == 5e-5


@pytest.fixture
def params_file(tmp_path):
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))


@pytest.mark.parametrize("preset", sorted(p.stem for p in (ROOT / "presets").glob("*.yaml")))
def test_every_preset_gives_valid_parameters_and_keeps_comments(preset, params_file):
    apply_preset(preset, ROOT / "presets", params_file)
    AllParams.read(params_file)
    assert "# active latents per token" in params_file.read_text()


def test_the_default_preset_is_what_is_delivered(params_file):
    before = AllParams.read(params_file)
    apply_preset("smoke", ROOT / "presets", params_file)
    assert AllParams.read(params_file) != before
    apply_preset("default", ROOT / "presets", params_file)
    assert AllParams.read(params_file) == before


def test_any_hub_id_is_a_preset(params_file):
    apply_preset("some-one/some-model", ROOT / "presets", params_file)
    assert AllParams.read(params_file).model.name == "some-one/some-model"


def test_an_unknown_preset_changes_nothing(params_file):
    before = params_file.read_bytes()
    with pytest.raises(UserError, match=r"there is no such preset; there are .*quick_test"):
        apply_preset("nope", ROOT / "presets", params_file)
    assert params_file.read_bytes() == before


class OfAVariant(StageParams):
    variant: VariantSettings = Field(alias="variants.{variant}")
    layers: list[int] = Field(alias="runs.layers")
    device: str


def test_a_stage_reads_its_keys_alone_and_names_them_whole():
    params = OfAVariant.parse(changed(train__k="many"), "params.yaml", variant="plt")
    assert params.variant.training == "progressive"
    assert params.layers == [9]
    with pytest.raises(UserError, match=r"variants\.plt\.trainin: unknown parameter.*known: .*training") as error:
        OfAVariant.parse(changed(variants__plt__trainin="joint"), "params.yaml", variant="plt")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"variants\.none: is missing"):
        OfAVariant.parse(changed(), "params.yaml", variant="none")
    with pytest.raises(UserError, match=r"runs\.layers: 'nine' is wrong"):
        OfAVariant.parse(changed(runs__layers="nine"), "params.yaml", variant="plt")


@pytest.mark.parametrize("name", ["<b>", "a b", ""])
def test_a_variants_name_is_part_of_file_names(name):
    with pytest.raises(UserError, match="variants"):
        AllParams.parse(changed(**{f"variants__{name}": {}}), "params.yaml")
