"""Cross-layer transcoders in the exact layout of other people's files, and what they should compute."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, D, F = 3, 12, 20


def raw_layers(threshold=True, skip=False, layers=LAYERS, d=D, d_hidden=F, seed=0):
    """Random weights of each layer in our names and orientation, W_dec [F, targets, d]."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for layer in range(layers):
        shapes = {"W_enc": (d_hidden, d), "b_enc": (d_hidden,), "W_dec": (d_hidden, layers - layer, d), "b_dec": (d,)}
        shapes |= {"W_skip": (d, d)} if skip else {}
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        result.append(tensors | ({"threshold": torch.rand(d_hidden, generator=generator) * 3} if threshold else {}))
    return result


def expected_layers(tensors, x):
    """The formula, for x [tokens, layers, d]."""
    y = torch.stack([t["b_dec"].expand(len(x), -1) for t in tensors], 1)
    for layer, t in enumerate(tensors):
        pre = x[:, layer] @ t["W_enc"].T + t["b_enc"]
        z = pre.relu() * (pre > t.get("threshold", torch.zeros(())))
        y[:, layer:] += torch.einsum("tf,fld->tld", z, t["W_dec"])
        if "W_skip" in t:
            y[:, layer] += x[:, layer] @ t["W_skip"].T
    return y


def gemma_scope_2_clt(folder: Path, tensors, name="width_262k_l0_medium") -> Path:
    """Decoders to all layers: those before a latent's own hold numbers that are not used."""
    folder = folder / "gemma-scope-2-270m-pt/clt" / (name + "_affine" * ("W_skip" in tensors[0]))
    folder.mkdir(parents=True)
    for layer, t in enumerate(tensors):
        ignored = torch.full((len(t["b_enc"]), layer, len(t["b_dec"])), 9.0)
        content = {"w_enc": t["W_enc"].T, "w_dec": torch.cat([ignored.to(t["W_dec"]), t["W_dec"]], 1)}
        content |= {n: t[n] for n in ("b_enc", "b_dec", "threshold")}
        content |= {"affine_skip_connection": t["W_skip"].T} if "W_skip" in t else {}
        save_file({n: v.contiguous() for n, v in content.items()}, folder / f"params_layer_{layer}.safetensors")
    return folder


def circuit_tracer_clt(folder: Path, tensors) -> Path:
    folder = folder / "clt"
    folder.mkdir(parents=True)
    for i, t in enumerate(tensors):
        save_file({f"{n}_{i}": v for n, v in t.items() if n != "W_dec"}, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": t["W_dec"]}, folder / f"W_dec_{i}.safetensors")
    (folder / "config.yaml").write_text(
        "model_name: m\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: mlp.hook_in\n"
        "feature_output_hook: hook_mlp_out\nscan: s\n"
    )
    return folder


def clt_forge(folder: Path, tensors, factors_in, factors_out, **changes) -> Path:
    """The same function, in units that the factors lead to; a target's bias is spread over the decoders to it."""
    folder = folder / "forge"
    folder.mkdir(parents=True)
    layers = len(tensors)
    pairs = [(source, target) for source in range(layers) for target in range(source, layers)]
    content = {
        "W_enc": torch.stack([t["W_enc"].T / s for t, s in zip(tensors, factors_in, strict=True)]),
        "b_enc": torch.stack([t["b_enc"] for t in tensors]),
        "log_threshold": torch.stack([t["threshold"] for t in tensors]).log(),
        "W_dec": torch.stack([tensors[s]["W_dec"][:, t - s] * factors_out[t] for s, t in pairs]),
        "b_dec": torch.stack([tensors[t]["b_dec"] * factors_out[t] / (t + 1) for _, t in pairs]),
        "estimated_norm_scaling_factor_in": torch.tensor(factors_in),
        "estimated_norm_scaling_factor_out": torch.tensor(factors_out),
        "feature_count": torch.zeros(layers, F, dtype=torch.long),
        "layer_mask": torch.zeros(layers, len(pairs)),
    }
    save_file(content, folder / "clt_weights.safetensors")
    config = {"model_name": "gpt2", "n_layers": layers, "d_in": D, "d_latent": F, "cross_layer_decoders": True}
    (folder / "clt_cfg.json").write_text(json.dumps(config | changes))
    return folder
