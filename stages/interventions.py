"""Stage `interventions`: texts that go on while latents are held at several doses, beside the model left alone.

The transcoders of one seed, one per layer of `runs.layers`, say together which latents there are; so does each
cross-layer transcoder of that seed.
"""

import pandas as pd
from pydantic import Field
from tqdm import tqdm

from stages.common.entry import entry, number_argument
from stages.common.params import Name, StageParams
from stages.common.paths import MODEL, interventions_of
from stages.common.replacements import sets_of
from transcoders.circuits.parts import load_parts
from transcoders.circuits.prompts import SteeredPrompt, read_prompts
from transcoders.circuits.settings import InterventionSettings
from transcoders.circuits.steered_page import steered_page
from transcoders.circuits.steering import dose_response, steering_metrics
from transcoders.core.devices import resolve_device
from transcoders.core.files import replacing, write_json
from transcoders.core.inputs import checked_input
from transcoders.core.tables import six_digits, write_csv
from transcoders.figures.interventions import dose_curves
from transcoders.figures.style import save
from transcoders.language.model import load_tokenizer


class Params(StageParams):
    """What decides this stage."""

    interventions: InterventionSettings
    variants: list[Name] = Field(alias="runs.variants")
    layers: list[int] = Field(alias="runs.layers")
    device: str


def work(seed: int) -> None:
    """Steer every prompt with every set of transcoders, and write data/interventions/<seed>/."""
    params = Params.read()
    settings, device = params.interventions, resolve_device(params.device)
    file = checked_input("interventions.prompts", settings.prompts, "prompts")
    prompts = read_prompts(file, SteeredPrompt, "interventions.prompts")
    parts, tokenizer = load_parts(MODEL, device), load_tokenizer(MODEL)
    tables = []
    for replacements in sets_of(params.variants, params.layers, settings.crosslayer, seed, device):
        for prompt in tqdm(prompts, desc=f"steering with {replacements.name}", unit="prompt"):
            table = dose_response(parts, replacements.transcoders, tokenizer, prompt, settings)
            tables.append(table.assign(transcoders=replacements.name))
    table = six_digits(pd.concat(tables))
    with replacing(interventions_of(seed)) as out:
        out.mkdir()
        write_csv(table, out / "doses.csv")
        write_json(out / "metrics.json", {str(name): steering_metrics(of) for name, of in table.groupby("transcoders")})
        save(dose_curves(table), out / "doses")
        (out / "index.html").write_text(steered_page(table, prompts, f"Interventions, seed {seed}"))


if __name__ == "__main__":
    seed = number_argument(__doc__, "seed")
    entry(lambda: work(seed))
