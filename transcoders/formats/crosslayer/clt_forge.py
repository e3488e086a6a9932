"""CLT-Forge's cross-layer transcoders: ``clt_weights.safetensors``, all layers in one file, and ``clt_cfg.json``."""

import torch
from torch import Tensor

from transcoders.core.errors import UserError
from transcoders.core.files import read_json
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.formats.build import check_settings, check_sizes
from transcoders.formats.crosslayer.build import Sizes, by_first_axis, check, empty, shape_of, small
from transcoders.formats.locate import Source
from transcoders.formats.weights import DOWNLOAD, Weights, open_weights

CONFIG, WEIGHTS = "clt_cfg.json", "clt_weights.safetensors"
SCALES = ("estimated_norm_scaling_factor_in", "estimated_norm_scaling_factor_out")
"""A layer's input is multiplied by the first, its output divided by the second."""
NOT_WEIGHTS = ("feature_count", "layer_mask")
"""What training keeps beside them."""
FIXED = {"cross_layer_decoders": True, "activation_fn": "jumprelu", "decoder_type": "full"}
HARMLESS = """device dtype seed model_name debug d_in d_latent n_layers jumprelu_bandwidth jumprelu_init_threshold
    normalize_decoder dead_feature_window context_size functional_loss k decoder_rank l0_coefficient ddp fsdp
    feature_sharding"""


def read(source: Source, device: torch.device | str) -> CrossLayerTranscoder:
    """Read a folder as CLT-Forge's ``save_model`` writes it; the factors of its units are folded into the weights.

    Raises:
        UserError: it is of another kind, or a tensor is missing, unknown or of a wrong shape.
    """
    file = source.folder / CONFIG
    config = read_json(file, DOWNLOAD)
    check_settings(file, config, HARMLESS, FIXED)
    weights = open_weights(source.folder / WEIGHTS, NOT_WEIGHTS)
    sizes = _sizes(weights)
    check_sizes(file, config, {"n_layers": sizes.layers, "d_latent": sizes.d_hidden, "d_in": sizes.d_model})
    provenance = {
        "source": source.name,
        "format": "clt-forge",
        "model": config.get("model_name"),
        "hook_in": "ln2.hook_normalized",
        "hook_out": "hook_mlp_out",
        "gain_applied": False,
    }
    model = empty(sizes, "jumprelu", False, provenance, device)
    _fill_([model.tensors(layer) for layer in range(sizes.layers)], weights)
    return model


def _sizes(weights: Weights) -> Sizes:
    shape = shape_of(weights, "W_enc")
    if len(shape) != 3 or not all(shape):
        raise UserError(f"{weights.path}: W_enc is {list(shape)}, expected [layers, d_model, latents]")
    layers, d, d_hidden = shape
    pairs = layers * (layers + 1) // 2
    by_latent, by_layer = (layers, d_hidden), (layers,)
    shapes = {"W_enc": shape, "b_enc": by_latent, "log_threshold": by_latent, **dict.fromkeys(SCALES, by_layer)}
    check(weights, shapes | {"W_dec": (pairs, d_hidden, d), "b_dec": (pairs, d)})
    return Sizes(layers, d_hidden, d)


def _fill_(layers: list[dict[str, Tensor]], weights: Weights) -> None:
    """Copy the weights; decoders stand in the order of a matrix's upper triangle, by source and then by target."""
    factors_in, factors_out = small(weights, SCALES)
    if not (factors_in.isfinite().all() and factors_out.isfinite().all() and factors_out.all()):
        raise UserError(f"{weights.path}: {' or '.join(SCALES)} holds numbers that nothing can be divided by")
    pairs = torch.triu_indices(len(layers), len(layers)).T.tolist()
    for layer, part in by_first_axis(weights, "W_enc"):
        layers[layer]["W_enc"].copy_(part.T.float() * factors_in[layer])
    for layer, part in by_first_axis(weights, "b_enc"):
        layers[layer]["b_enc"].copy_(part)
    for layer, part in by_first_axis(weights, "log_threshold"):
        layers[layer]["threshold"].copy_(part.float().exp())
    for pair, part in by_first_axis(weights, "W_dec"):
        source, target = pairs[pair]
        layers[source]["W_dec"][:, target - source] = (part.float() / factors_out[target]).to(part.device)
    for pair, part in by_first_axis(weights, "b_dec"):
        target = pairs[pair][1]
        layers[target]["b_dec"].add_((part.float() / factors_out[target]).to(layers[target]["b_dec"].device))
