"""What the comparison does where a layer's y tells no letter."""

import json

import pandas as pd
import torch

from stages.compare import PRUNED, SHOWN, _write
from transcoders.absorption.measure import _good
from transcoders.absorption.settings import AbsorptionSettings
from transcoders.absorption.words import Probes


def test_a_comparison_without_any_letter_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured = [name for name in SHOWN if name not in ("mean_absorption", "splitting")]
    row = {"name": "topk-0-0", "kind": "trained", "tokens": 9, **dict.fromkeys(measured, 0.5)}
    _write(pd.DataFrame([row]), pd.DataFrame(columns=PRUNED), [], [], "none")
    assert "mean_absorption" not in json.loads((tmp_path / "metrics/compare.json").read_text())["topk-0-0"]
    assert "topk-0-0" in (tmp_path / "data/compare.md").read_text()


def test_a_probe_that_is_never_right_is_no_letter_to_absorb():
    """Nothing can be averaged over no words, also where ``least_probe_f1`` is 0."""
    directions, right = torch.eye(2), torch.zeros(2, 3, dtype=torch.bool)
    probes = Probes(["a", "b"], directions, right, torch.tensor([0.0, 0.5]))
    assert _good(probes, AbsorptionSettings(least_probe_f1=0.0)) == [1]
