"""Transcoders in the exact layout of other people's files, and what they should compute."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

D, F = 12, 40


def raw(skip=False, threshold=True, d_in=D, d_out=D, d_hidden=F, seed=0):
    """Random weights in our names and orientation."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_hidden, d_in), "b_enc": (d_hidden,), "W_dec": (d_hidden, d_out), "b_dec": (d_out,)}
    shapes |= {"W_skip": (d_out, d_in)} if skip else {}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | ({"threshold": torch.rand(d_hidden, generator=generator) * 3} if threshold else {})


def expected(t, x, k=None):
    """The formula, from a user's point of view."""
    pre = x @ t["W_enc"].T + t["b_enc"]
    if k is not None:
        top = pre.topk(k, dim=1)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    else:
        z = pre.relu() * (pre > t.get("threshold", torch.zeros(())))
    y = z @ t["W_dec"] + t["b_dec"]
    return y + x @ t["W_skip"].T if "W_skip" in t else y


def gemma_scope(folder: Path, t, place="gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_8") -> Path:
    folder = folder / place
    folder.mkdir(parents=True)
    arrays = {name: value.numpy() for name, value in t.items() if name != "W_enc"}
    np.savez(folder / "params.npz", W_enc=t["W_enc"].T.numpy(), **arrays)
    return folder


def gemma_scope_2(folder: Path, t, config=True, layer=9, **changes) -> Path:
    affine = "W_skip" in t
    name = f"layer_{layer}_width_16k_l0_small" + "_affine" * affine
    folder = folder / "gemma-scope-2-270m-pt/transcoder_all" / name
    folder.mkdir(parents=True)
    tensors = {"w_enc": t["W_enc"].T, "w_dec": t["W_dec"], **{n: t[n] for n in ("b_enc", "b_dec", "threshold")}}
    tensors |= {"affine_skip_connection": t["W_skip"].T} if affine else {}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "params.safetensors")
    if config:
        content = {
            "hf_hook_point_in": f"model.layers.{layer}.pre_feedforward_layernorm.output",
            "hf_hook_point_out": f"model.layers.{layer}.post_feedforward_layernorm.output",
            "width": F,
            "model_name": "gemma-v3-270m-pt",
            "architecture": "jump_relu",
            "affine_connection": affine,
            "type": "transcoder",
        }
        (folder / "config.json").write_text(json.dumps(content | changes))
    return folder


def saelens(folder: Path, t, **changes) -> Path:
    folder = folder / "saelens"
    folder.mkdir(parents=True)
    tensors = {name: (value.T if name == "W_enc" else value).contiguous() for name, value in t.items()}
    save_file(tensors, folder / "sae_weights.safetensors")
    name = "jumprelu_" * ("threshold" in t) + "skip_" * ("W_skip" in t) + "transcoder"
    content = {
        "d_in": t["W_enc"].shape[1],
        "d_sae": len(t["b_enc"]),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"model_name": "m", "hook_name": "blocks.4.mlp.hook_in", "hook_name_out": "blocks.4.hook_mlp_out"},
        "d_out": len(t["b_dec"]),
        "architecture": name,
    }
    (folder / "cfg.json").write_text(json.dumps(content | changes))
    return folder


def sparsify(folder: Path, t, k=5, **changes) -> Path:
    folder = folder / "layers.4.mlp"
    folder.mkdir(parents=True)
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}
    save_file({names.get(name, name): value for name, value in t.items()}, folder / "sae.safetensors")
    content = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": len(t["b_enc"]),
        "k": k,
        "multi_topk": False,
        "skip_connection": "W_skip" in t,
        "transcode": True,
        "d_in": len(t["b_dec"]),
    }
    (folder / "cfg.json").write_text(json.dumps(content | changes))
    return folder


def circuit_tracer(folder: Path, layers) -> Path:
    folder = folder / "set"
    folder.mkdir(parents=True)
    for layer, t in enumerate(layers):
        names = {"threshold": "activation_function.threshold"}
        save_file({names.get(n, n): value for n, value in t.items()}, folder / f"layer_{layer}.safetensors")
    (folder / "config.yaml").write_text(
        "model_name: m\nmodel_kind: transcoder_set\nfeature_input_hook: mlp.hook_in\n"
        "feature_output_hook: hook_mlp_out\nscan: s\n"
    )
    return folder
