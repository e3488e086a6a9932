"""What holds for all inputs: stores, splits, readers, parameters, formats."""

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import formats_support as foreign
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from tests_support import make_store

from stages.preset import AllParams
from transcoders import Transcoder, load
from transcoders.activations import store
from transcoders.activations.reader import ShuffledReader
from transcoders.activations.settings import SplitSettings
from transcoders.activations.split import PARTS, documents_of, split_documents
from transcoders.activations.store import Store
from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.formats import circuit_tracer, saelens, sparsify
from transcoders.formats.convert import folded

ROOT = Path(__file__).parents[2]
REPEATABLE = settings(derandomize=True, deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
"""The same examples every time, and no time limit that a busy machine would break."""
CPU = torch.device("cpu")
PARAMETERS = YAML(typ="safe").load(ROOT / "params.yaml")
OTHERS: dict[type, tuple[Any, ...]] = {
    bool: ("yes", 2, [], None),
    int: ("1", 1.5, [1], True),
    float: ("0.1", [0.1], {}),
    str: (1, True, ["x"], {}),
    list: ("x", 1, {"a": 1}),
    dict: ("x", 1, [1]),
    type(None): ([], {}),
}
"""Of each type, values that are of another."""


def leaves(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every key of the parameters; lists are not gone into."""
    own = [path] if path else []
    return (
        own + [p for key, value in node.items() for p in leaves(value, (*path, key))] if isinstance(node, dict) else own
    )


def put(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(content)
    node = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


@given(
    rows=st.integers(1, 300),
    width=st.integers(1, 6),
    dtype=st.sampled_from(list(store.DTYPES)),
    seed=st.integers(0, 99),
    ends=st.tuples(st.integers(0, 320), st.integers(0, 320)),
)
@example(rows=4097, width=2, dtype="bfloat16", seed=0, ends=(4095, 4097))
@settings(REPEATABLE, max_examples=15)
def test_a_store_gives_back_what_was_put_in(
    rows: int, width: int, dtype: str, seed: int, ends: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        opened = Store(make_store(Path(folder) / "s.zarr", x, -x, dtype=dtype))
        start, stop = sorted(ends)
        expected = x.to(store.DTYPES[dtype])
        assert torch.equal(opened.rows("mlp_in", 0, rows), expected)
        assert torch.equal(opened.rows("mlp_in", start, stop), expected[start:stop])
        assert torch.equal(opened.rows("mlp_out", start, stop), -expected[start:stop])
        assert opened.labels("token", start, stop).tolist() == list(range(rows))[start:stop]


titles = st.lists(st.text(max_size=8), min_size=60, max_size=150, unique=True)


@given(titles, st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 10**6), st.data())
@REPEATABLE
def test_a_split_is_a_partition_that_added_documents_do_not_change(
    names: list[str], validation: float, test: float, seed: int, data: st.DataObject
) -> None:
    frame = pd.DataFrame({"title": names, "tokens": 1})
    chosen = SplitSettings(validation=validation, test=test, seed=seed)
    try:
        split = split_documents(frame, chosen)
    except UserError:
        assume(False)
    masks = np.stack([documents_of(split, part) for part in PARTS])
    assert (masks.sum(0) == 1).all()
    some = sorted(data.draw(st.sets(st.integers(0, len(names) - 1), min_size=len(names) - 5)))
    try:
        fewer = split_documents(frame.iloc[some], chosen)
    except UserError:
        return
    assert fewer["split"].tolist() == split["split"].iloc[some].tolist()


@pytest.mark.parametrize(("validation", "test"), [(0.05, 0.1), (0.3, 0.3)])
def test_the_shares_of_a_split_are_those_asked_for(validation: float, test: float) -> None:
    frame = pd.DataFrame({"title": [str(i) for i in range(20_000)], "tokens": 1})
    split = split_documents(frame, SplitSettings(validation=validation, test=test, seed=3))
    shares = split["split"].value_counts(normalize=True)
    assert shares["validation"] == pytest.approx(validation, abs=0.012)
    assert shares["test"] == pytest.approx(test, abs=0.012)


@pytest.fixture(scope="module")
def rows_of_12_000(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """x is the row's number, 50 rows a document."""
    rows = torch.arange(12_000, dtype=torch.float32)[:, None]
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    return Store(make_store(path, rows, rows, documents=np.arange(12_000) // 50))


@given(
    chosen=st.sets(st.integers(0, 239), min_size=40),
    batch=st.integers(100, 700),
    seed=st.integers(0, 99),
    buffer=st.sampled_from([1, 5000, 10**6]),
    first=st.integers(0, 60),
)
@settings(REPEATABLE, max_examples=20)
def test_an_epoch_is_a_permutation_and_resuming_gives_the_tail(
    rows_of_12_000: Store, chosen: set[int], batch: int, seed: int, buffer: int, first: int
) -> None:
    mask = np.isin(np.arange(240), list(chosen))
    reader = ShuffledReader(rows_of_12_000, mask, batch_size=batch, buffer_tokens=buffer, seed=seed, device=CPU)

    def take(start: int, count: int) -> torch.Tensor:
        found = [b.x[:, 0] for b, _ in zip(reader.batches(start), range(count), strict=False)]
        return torch.stack(found) if found else torch.zeros(0)

    own = reader.batches_per_epoch
    epoch = take(0, own).long().flatten()
    assert len(epoch) == len(epoch.unique()) == 50 * len(chosen) // batch * batch
    assert mask[epoch.numpy() // 50].all()
    first = first % (2 * own)
    assert torch.equal(take(0, first + 2)[first:], take(first, 2))


@given(st.data())
@settings(REPEATABLE, max_examples=120)
def test_parameters_of_a_wrong_type_are_refused_in_one_line_that_names_them(data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(leaves(PARAMETERS)))
    node: Any = PARAMETERS
    for key in path:
        node = node[key]
    wrong = data.draw(st.sampled_from(OTHERS[type(node)]))
    assume(not (path[-1] == "reach" and type(wrong) is int))  # all, or a number
    with pytest.raises(UserError) as refused:
        AllParams.parse(put(PARAMETERS, path, wrong), "params.yaml")
    assert "\n" not in str(refused.value)
    if type(node) is not dict:
        assert ".".join(path) in str(refused.value) or f"{path[0]}." in str(refused.value)


@given(
    st.sampled_from([(), *(p for p in leaves(PARAMETERS) if len(p) == 1)]),
    st.from_regex(r"[a-z]{6}x[a-z]", fullmatch=True),
)
@REPEATABLE
def test_unknown_parameters_are_refused_wherever_they_stand(path: tuple[Any, ...], name: str) -> None:
    node: Any = PARAMETERS
    for key in path:
        node = node[key]
    assume(isinstance(node, dict) and path != ("variants",))
    with pytest.raises(UserError, match=rf"{name}: unknown parameter") as refused:
        AllParams.parse(put(PARAMETERS, (*path, name), 1), "params.yaml")
    assert "\n" not in str(refused.value)


@given(
    st.integers(1, 64),
    st.integers(64, 10**5),
    st.floats(1e-6, 1.0),
    st.integers(0, 2**31),
    st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True), min_size=1, max_size=4, unique=True),
)
@REPEATABLE
def test_valid_parameters_survive_a_round_trip(k: int, d_hidden: int, rate: float, seed: int, names: list[str]) -> None:
    content = copy.deepcopy(PARAMETERS)
    content["train"] |= {"k": k, "d_hidden": d_hidden, "learning_rate": rate}
    content["collect"]["seed"] = seed
    content["variants"] |= {name: {} for name in names}
    content["runs"]["variants"] = names
    params = AllParams.parse(content, "params.yaml")
    assert AllParams.parse(json.loads(params.model_dump_json()), "params.yaml") == params
    assert (params.train.k, params.train.d_hidden, params.train.learning_rate) == (k, d_hidden, rate)


@pytest.mark.parametrize("name", ["a/b", "../x", "a b", "a;b", "$(true)", "", "-x", "a'b", "<b>", "a\n", "é"])
def test_a_variant_is_named_by_what_is_safe_in_paths_commands_and_pages(name: str) -> None:
    content = copy.deepcopy(PARAMETERS)
    content["variants"][name] = {}
    with pytest.raises(UserError, match="variants"):
        AllParams.parse(content, "params.yaml")


def model(encoder: str, d: int, d_hidden: int, k: int, skip: bool, seed: int) -> Transcoder:
    made = Transcoder(
        TranscoderConfig(
            encoder=encoder,
            d_in=d,
            d_out=d,
            d_hidden=d_hidden,
            k=k,
            skip=skip,
            input_scale=1.5,
            output_scale=0.5,
            provenance={"layer": 0, "model": "m"},
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in made.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
            if name == "threshold":
                value.abs_()
    return made.requires_grad_(False)


@given(
    st.sampled_from(["ours", "saelens", "sparsify", "circuit-tracer"]),
    st.integers(1, 9),
    st.integers(1, 20),
    st.booleans(),
    st.integers(0, 9),
    st.data(),
)
@REPEATABLE
def test_what_a_format_writes_it_reads_back(
    target: str, d: int, d_hidden: int, skip: bool, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, d_hidden))
    trained = model("topk" if target == "sparsify" else "jumprelu", d, d_hidden, k, skip, seed)
    x = torch.randn(7, d, generator=torch.Generator().manual_seed(seed))
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "layers.0.mlp"
        path.mkdir()
        if target == "ours":
            trained.save(path)
        elif target == "saelens":
            saelens.write(folded(trained), path, {})
        elif target == "sparsify":
            sparsify.write(folded(trained), path, {})
        else:
            circuit_tracer.write({0: folded(trained)}, path, {})
            path = path / "layer_0.safetensors"
        found = load(path)
        assert torch.allclose(found(x), trained(x), atol=1e-4, rtol=1e-4)
        if target == "ours":
            assert found.config == trained.config
            assert all(torch.equal(v, trained.state_dict()[n]) for n, v in found.state_dict().items())
    finally:
        shutil.rmtree(folder)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from(["gemma_scope_2", "saelens", "sparsify"]), st.data())
@settings(REPEATABLE, max_examples=150)
def test_no_value_in_a_header_or_config_raises_anything_but_a_line(kind: str, data: st.DataObject) -> None:
    t = foreign.raw(skip=True, threshold=kind != "sparsify", d_in=3, d_out=3, d_hidden=4)
    with tempfile.TemporaryDirectory() as scratch:
        folder = getattr(foreign, kind)(Path(scratch), t, **({"k": 2} if kind == "sparsify" else {}))
        config = next(file for file in folder.iterdir() if file.suffix == ".json")
        content = json.loads(config.read_text())
        content[data.draw(st.sampled_from(sorted(content)))] = data.draw(JUNK)
        config.write_text(json.dumps(content))
        try:
            load(folder)
        except UserError as error:
            said = str(error)
        else:
            said = ""
    assert "\n" not in said
