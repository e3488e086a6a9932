"""SAELens's transcoders: ``cfg.json`` and ``sae_weights.safetensors``."""

from pathlib import Path
from typing import Any

import torch

from transcoders.core.errors import UserError
from transcoders.core.files import read_json, write_json
from transcoders.core.tensors import save_tensors
from transcoders.dictionary.encoders import ENCODERS
from transcoders.dictionary.names import EncoderName
from transcoders.dictionary.transcoder import Transcoder
from transcoders.formats.build import build, check_settings, check_sizes, layout
from transcoders.formats.locate import Source
from transcoders.formats.weights import DOWNLOAD, open_weights

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
TENSORS = layout(W_enc="W_enc.T", b_enc="b_enc", W_dec="W_dec", b_dec="b_dec")
THRESHOLD = layout(threshold="threshold")
SKIP = layout(W_skip="W_skip")
STARTS = ("context_start", "prepend_bos")
"""What contexts begin with, in our metadata and transcoders; SAELens itself knows the second alone."""
ARCHITECTURES: dict[str, tuple[EncoderName, bool]] = {
    "transcoder": ("relu", False),
    "skip_transcoder": ("relu", True),
    "jumprelu_transcoder": ("jumprelu", False),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
"""SAELens's name -> our encoder, and whether there is a skip connection."""
PLAIN = {"apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none"}
FIXED = PLAIN | {
    "activation_fn": "relu",
    "activation_fn_str": "relu",
    "finetuning_scaling_factor": False,
    "rescale_acts_by_decoder_norm": False,
}
HARMLESS = """architecture d_in d_out d_sae dtype device metadata
    model_name model_class_name model_from_pretrained_kwargs hook_point hook_name hook_layer hook_name_out
    hook_layer_out hf_hook_name hf_hook_name_out context_size dataset_path dataset_trust_remote_code prepend_bos
    exclude_special_tokens seqpos_slice neuronpedia_id sae_lens_version sae_lens_training_version
    decoder_init_norm l1_coefficient lp_norm l1_warm_up_steps l0_coefficient l0_warm_up_steps
    jumprelu_init_threshold jumprelu_bandwidth jumprelu_sparsity_loss_mode jumprelu_tanh_scale
    pre_act_loss_coefficient"""
"""What older versions wrote beside, and what training used."""


def read(source: Source, device: torch.device | str) -> Transcoder:
    """Read a folder as SAELens's ``save_model`` writes it.

    Raises:
        UserError: its architecture is no transcoder's, or it normalises or reshapes activations.
    """
    config = read_json(source.folder / CONFIG, DOWNLOAD)
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(
            f"{source.name}: architecture is {architecture!r}; transcoders in SAELens are "
            f"{', '.join(ARCHITECTURES)} (an autoencoder maps a place to itself and replaces no MLP)"
        )
    check_settings(source.folder / CONFIG, config, HARMLESS, FIXED)
    encoder, skip = ARCHITECTURES[architecture]
    expected = {**TENSORS, **(THRESHOLD if ENCODERS[encoder].has_threshold else {}), **(SKIP if skip else {})}
    model = build(open_weights(source.folder / WEIGHTS), expected, encoder, None, _provenance(config, source), device)
    sizes = {"d_in": model.config.d_in, "d_out": model.config.d_out, "d_sae": model.config.d_hidden}
    check_sizes(source.folder / CONFIG, config, sizes)
    return model


def _provenance(config: dict[str, Any], source: Source) -> dict[str, Any]:
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError(f"{source.name}: metadata in {CONFIG} is no object; expected one with model_name and hook_name")
    hook = str(metadata.get("hook_name") or "")
    parts = [int(part) for part in hook.split(".") if part.isdigit()]
    return {
        "source": source.name,
        "format": "saelens",
        "layer": parts[0] if parts else None,
        "model": metadata.get("model_name"),
        "hook_in": hook or None,
        "hook_out": metadata.get("hook_name_out"),
        "hf_hook_in": metadata.get("hf_hook_name"),
        "hf_hook_out": metadata.get("hf_hook_name_out"),
        "gain_applied": not hook.endswith("ln2.hook_normalized"),
        **({key: metadata.get(key) for key in STARTS} if STARTS[0] in metadata else {}),
    }


def write(model: Transcoder, folder: Path, metadata: dict[str, Any]) -> None:
    """Write a raw-unit transcoder without TopK as a folder that ``SAE.load_from_disk`` reads."""
    names = {pair: name for name, pair in ARCHITECTURES.items()}
    config = model.config
    tensors = {name: value.T if name == "W_enc" else value for name, value in model.named_parameters()}
    save_tensors(folder / WEIGHTS, tensors)
    provenance = config.provenance
    write_json(
        folder / CONFIG,
        {
            "architecture": names[config.encoder, config.skip],
            "d_in": config.d_in,
            "d_out": config.d_out,
            "d_sae": config.d_hidden,
            "dtype": str(model.W_enc.dtype).removeprefix("torch."),
            "device": "cpu",
            **PLAIN,
            "metadata": {
                "model_name": provenance.get("model"),
                "hook_name": provenance.get("hook_in"),
                "hook_name_out": provenance.get("hook_out"),
                "hf_hook_name": provenance.get("hf_hook_in"),
                "hf_hook_name_out": provenance.get("hf_hook_out"),
                "prepend_bos": True,
                **{key: provenance[key] for key in STARTS if key in provenance},
                **metadata,
            },
        },
    )
