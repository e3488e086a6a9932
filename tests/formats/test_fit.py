import formats_support as foreign
import pytest
import torch
from formats_support import D, expected, raw

from transcoders import load
from transcoders.core.errors import UserError
from transcoders.formats.fit import fitted

STORE = {"d_model": D, "model": "google/gemma-2-2b", "input_gain": (torch.rand(D) + 0.5).tolist()}


def test_gemma_scope_reads_our_x_once_the_gain_is_divided_out(tmp_path):
    t, before = raw(), torch.randn(20, D)
    model = fitted(load(foreign.gemma_scope(tmp_path, t)), "it", STORE)
    x = before * torch.tensor(STORE["input_gain"])
    assert torch.allclose(model(x), expected(t, before), atol=1e-4)
    assert fitted(model, "it", STORE) is model, "only once"


def test_gemma_scope_2_reads_our_x(tmp_path):
    model = load(foreign.gemma_scope_2(tmp_path, raw()))
    assert fitted(model, "it", STORE | {"input_gain": None}) is model


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({"d_model": 640}, "reads 12 and predicts 12 numbers, but google/gemma-2-2b has d_model = 640"),
        ({"input_gain": None}, "before its gain, which the activations do not tell"),
        ({"input_gain": [0.0] * D}, "gain is 0"),
    ],
)
def test_what_does_not_belong_to_the_activations_is_refused(tmp_path, store, message):
    model = load(foreign.gemma_scope(tmp_path, raw()))
    with pytest.raises(UserError, match=message):
        fitted(model, "it", STORE | store)


def test_another_models_transcoder_of_the_same_width_is_told(tmp_path, caplog):
    fitted(load(foreign.gemma_scope_2(tmp_path, raw())), "it", STORE)
    assert "was trained on google/gemma-3-270m; these are activations of google/gemma-2-2b" in caplog.text
