"""The README.md that goes with an exported transcoder: what it is, how good, where from, under what licence."""

from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.compat import StringIO

from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.dictionary import Config

SHOWN = {
    "fvu": "fraction of variance unexplained",
    "cosine": "mean cosine of prediction and MLP output",
    "l0": "active latents per token",
    "dead_fraction": "latents that never fire, held-out",
    "loss_recovered": "loss recovered with the MLP replaced (1: as good, 0: zeroed)",
    "delta_ce": "rise of the loss, nats per token",
    "kl": "KL(clean ‖ replaced)",
    "tokens": "tokens evaluated on",
}
USE = {
    "saelens": "from sae_lens import SAE\n\nt = SAE.load_from_disk({folder!r})\ny_hat = t(x)",
    "sparsify": "from sparsify import SparseCoder\n\nt = SparseCoder.load_from_disk({folder!r})\ny_hat = t(x).sae_out",
    "circuit-tracer": (
        "from circuit_tracer.utils.hf_utils import load_transcoders\nimport yaml\n\n"
        "# run in this folder, or upload it and give its name to ReplacementModel.from_pretrained\n"
        "t, config = load_transcoders(yaml.safe_load(open('config.yaml'))), None"
    ),
    "hub": "import transcoders\n\nt = transcoders.load({folder!r})\ny_hat = t(x)",
}


USE_CROSS_LAYER = (
    "import torch\nfrom circuit_tracer.transcoder.cross_layer_transcoder import load_clt\n\n"
    "hooks = {{'feature_input_hook': 'mlp.hook_in', 'feature_output_hook': 'hook_mlp_out'}}\n"
    "t = load_clt({folder!r}, **hooks, dtype=torch.float32)\ny_hat = t(x)  # [layers, tokens, d_model]"
)


def card(
    target: str,
    name: str,
    configs: Mapping[str, Config],
    fidelity: Mapping[str, Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the model card of the runs in ``configs`` (by name), exported to ``target``; ``metrics`` may lack runs."""
    first = next(iter(configs.values()))
    across, provenance = isinstance(first, CrossLayerConfig), first.provenance
    base = str(provenance["model"]) if provenance.get("model") else None
    gemma = bool(base and "gemma" in base)
    parts = [
        _header(base, gemma),
        f"# {name}",
        f"{_what(first, len(configs))} of {base or 'a model'}: from what {'each' if across else 'an'} MLP receives "
        f"(after the norm and its gain) to what its block {'and later ones add' if across else 'adds'} to the residual "
        "stream. Inputs and outputs are in the model's own units; the normalisation used in training is folded into "
        "the weights.",
        f"```python\n{(USE_CROSS_LAYER if across else USE[target]).format(folder=name)}\n```",
    ]
    for run, config in configs.items():
        parts += [f"## {run}", _table(_facts(config)), "### Export", _export(fidelity[run], across)]
        if run in metrics:
            parts += ["### Metrics on held-out documents", _metrics(metrics[run])]
        if "train" in config.provenance:
            parts += ["### Training parameters", _table(config.provenance["train"])]
    parts += ["## Licence", _licence(gemma, base)]
    return "\n\n".join(parts) + "\n"


def _header(base: str | None, gemma: bool) -> str:
    content: dict[str, Any] = {"license": "gemma" if gemma else "other", "tags": ["transcoder", "interpretability"]}
    if base and "/" in base:
        content["base_model"] = base
    text = StringIO()
    YAML().dump(content, text)
    return f"---\n{text.getvalue()}---"


def _what(config: Config, number: int) -> str:
    if isinstance(config, CrossLayerConfig):
        return "Sparse cross-layer transcoder"
    return "Sparse transcoders" if number > 1 else "Sparse transcoder"


def _facts(config: Config) -> dict[str, Any]:
    provenance = config.provenance
    if isinstance(config, CrossLayerConfig):
        later = "all later ones" if config.reach is None else f"at most {config.reach} later ones"
        where: dict[str, Any] = {
            "layers": f"{config.layers[0]} to {config.layers[-1]}",
            "written to": f"the layer itself and {later}",
        }
        d, latents = f"{config.d_model}, {config.d_model}", f"{config.d_hidden} a layer"
        k = f"k = {config.k} a layer" + (", a token's shared by all layers" if config.budget == "token" else "")
    else:
        where = {"layer": provenance.get("layer")}
        d, latents, k = f"{config.d_in}, {config.d_out}", str(config.d_hidden), f"k = {config.k}"
    facts = {
        **where,
        "x": provenance.get("hf_hook_in"),
        "y": provenance.get("hf_hook_out"),
        "latents": latents,
        "d_in, d_out": d,
        "trained with": f"{config.encoder}, {k}{', skip connection' if config.skip else ''}",
        "valid prefixes": ", ".join(map(str, config.prefixes)) or None,
        "model files (hash)": provenance.get("model_hash"),
        "contexts begin with": _start(provenance),
        "split": provenance.get("split_hash"),
        "seed": provenance.get("seed"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _start(provenance: Mapping[str, Any]) -> str | None:
    if "context_start" not in provenance:
        return None
    return f"`{provenance['context_start']}`" if provenance["context_start"] else "their text"


def _export(fidelity: Mapping[str, Any], across: bool) -> str:
    if fidelity["exact"]:
        return "Exact: the same outputs as the trained transcoder, up to rounding."
    return (
        f"Not exact: this format has no counterpart, so this is {fidelity['method']}. On {fidelity['tokens']} held-out "
        f"tokens its output differs from the trained transcoder's by {fidelity['fvu_of_original_output']:.3g} of the "
        f"variance of that; FVU {fidelity['fvu']:.4g} (trained: {fidelity['fvu_original']:.4g}), "
        f"L0 {fidelity['l0']:.4g} (trained: {fidelity['l0_original']:.4g})."
        f"{' Fractions of variance are means over layers; L0 is of all layers together.' if across else ''}"
    )


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = [f"| `{name}` | {metrics[name]:.4g} | {what} |" for name, what in SHOWN.items() if name in metrics]
    return "\n".join(["| metric | value | |", "|---|---|---|", *rows, "", "Of the trained transcoder, before export."])


def _table(facts: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def _licence(gemma: bool, base: str | None) -> str:
    if gemma:
        return (
            "Trained on activations of Gemma, provided under and subject to the Gemma Terms of Use found at "
            "[ai.google.dev/gemma/terms](https://ai.google.dev/gemma/terms), which bind whoever uses this as well."
        )
    return f"Trained on activations of {base or 'a model'}, whose licence applies."
