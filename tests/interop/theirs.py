"""Runs in an environment of its own: what the other library makes of a folder.

``python theirs.py ACTION FOLDER X.safetensors OUT.safetensors``; OUT gets their outputs for the rows of X, as ``y``.
"""

import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def saelens(folder, x):
    from sae_lens import SAE

    return {"y": SAE.load_from_disk(folder)(x)}


def saelens_rewrite(folder, x):
    """Load, and write again beside it as SAELens does."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    sae.save_model(folder.parent / "rewritten")
    return {"y": sae(x)}


def saelens_new(folder, x):
    """Every transcoder class with random weights, written by SAELens."""
    from sae_lens.registry import get_sae_class

    result = {}
    for name in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        cls, config = get_sae_class(name)
        sae = cls(config(d_in=x.shape[1], d_sae=64, d_out=x.shape[1], apply_b_dec_to_input=False))
        sae.cfg.metadata.hook_name = "blocks.3.mlp.hook_in"
        for parameter in sae.parameters():
            parameter.data = torch.randn(parameter.shape) * (x.shape[1] ** -0.5)
        sae.save_model(folder / name)
        result[name] = sae(x)
    return result


def gemma_scope(folder, x):
    return _official(folder, x, "gemma_2_transcoder_huggingface_loader")


def gemma_scope_2(folder, x):
    return _official(folder, x, "gemma_3_sae_huggingface_loader")


def _official(folder, x, loader):
    """SAELens's own loader, its downloads answered from the folder ``ROOT/<repository>/<path in it>``."""
    from huggingface_hub.errors import EntryNotFoundError
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class

    [place] = [i for i, part in enumerate(folder.parts) if part.startswith("gemma-scope")]
    root = Path(*folder.parts[: place + 1])

    def download(repo_id, filename, subfolder="", **_):
        file = root / subfolder / filename
        if not file.is_file():
            raise EntryNotFoundError(str(file))
        return str(file)

    def shapes(repo_id, filename):
        with safe_open(root / filename, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

    loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes = download, shapes
    config, state, _ = getattr(loaders, loader)(f"google/{root.name}", str(folder.relative_to(root)), device="cpu")
    config |= {"d_in": state["W_enc"].shape[0], "d_sae": state["W_enc"].shape[1], "d_out": state["W_dec"].shape[1]}
    cls, settings = get_sae_class(config["architecture"])
    sae = cls(settings.from_dict(config))
    sae.load_state_dict(state)
    return {"y": sae(x)}


def sparsify(folder, x):
    from sparsify import SparseCoder

    return {"y": SparseCoder.load_from_disk(folder)(x).sae_out}


def sparsify_rewrite(folder, x):
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(folder)
    coder.save_to_disk(folder.parent / "rewritten")
    return {"y": coder(x).sae_out}


def circuit_tracer(folder, x):
    """The outputs of every layer, the set written again, and a graph of a tiny model in which it replaces the MLPs."""
    transcoders = _transcoder_set(folder)
    transcoders.to_safetensors(folder.parent / "rewritten")
    return {f"y_{layer}": transcoder(x) for layer, transcoder in enumerate(transcoders)}


def cross_layer(folder, x):
    """The outputs of a cross-layer transcoder for x [layers, tokens, d_model], and its files written again."""
    clt = _cross_layer(folder)
    clt.to_safetensors(str(folder.parent / "rewritten"))
    return {"y": clt(x)}


def _cross_layer(folder):
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

    hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    return load_clt(str(folder), **hooks, device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=False)


def gemma_scope_2_clt(folder, x):
    """Its own loader of Gemma Scope 2's, which leaves out the last of the files that it is given: here one too many."""
    from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt

    paths = {layer: str(folder / f"params_layer_{layer}.safetensors") for layer in range(len(x))}
    paths[len(x)] = paths[0]
    clt = load_gemma_scope_2_clt(paths, device=torch.device("cpu"), dtype=torch.float32)
    return {"y": clt.decode(clt.encode(x).to_sparse(), x)}


def attribute(folder, x):
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.graph import prune_graph
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from transformer_lens import HookedTransformerConfig

    torch.manual_seed(0)
    transcoders = _transcoder_set(folder)
    config = HookedTransformerConfig(
        n_layers=len(transcoders),
        d_model=x.shape[1],
        n_ctx=16,
        d_head=4,
        n_heads=3,
        d_mlp=24,
        d_vocab=30,
        act_fn="gelu",
        normalization_type="RMS",
        model_name="tiny",
        tokenizer_prepends_bos=True,
    )
    model = TransformerLensReplacementModel.from_config(config, transcoders)
    model.tokenizer = Tokenizer()
    graph = attribute(torch.arange(1, 7), model, max_n_logits=3)
    kept = prune_graph(graph).node_mask
    return {
        "adjacency": graph.adjacency_matrix,
        "features": graph.active_features,
        "activations": graph.activation_values,
        "kept": kept.float(),
    }


def circuits(folder, x):
    """A graph, and logits under interventions, of the Llama beside ``folder`` with its transcoders.

    x holds the tokens in its first row, then a row for each intervention: layer, position, latent, value.
    """
    from circuit_tracer.attribution.attribute import attribute
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import LlamaForCausalLM

    llama = LlamaForCausalLM.from_pretrained(folder.parent / "llama")
    hf = llama.config
    config = HookedTransformerConfig(
        n_layers=hf.num_hidden_layers,
        d_model=hf.hidden_size,
        n_ctx=16,
        d_head=hf.head_dim,
        n_heads=hf.num_attention_heads,
        d_mlp=hf.intermediate_size,
        d_vocab=hf.vocab_size,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=hf.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_dim=hf.head_dim,
        rotary_adjacent_pairs=False,
        model_name="tiny",
        tokenizer_prepends_bos=True,
    )
    model = TransformerLensReplacementModel(config)
    model.load_state_dict(convert_llama_weights(llama, config), strict=False)
    across = (folder / "W_enc_0.safetensors").is_file()
    model._configure_replacement_model(_cross_layer(folder) if across else _transcoder_set(folder))
    model.tokenizer = Tokenizer()
    tokens = x[0].long()
    interventions = [
        (int(layer), int(position), int(latent), float(value)) for layer, position, latent, value in x[1:, :4].tolist()
    ]
    ways = {
        "all": {"constrained_layers": range(config.n_layers)},
        "attention": {"freeze_attention": True},
        "nothing": {"freeze_attention": False},
    }
    with torch.no_grad():
        logits = {name: model.feature_intervention(tokens, interventions, **way)[0] for name, way in ways.items()}
        clean = model(tokens)
    with torch.enable_grad():
        graph = attribute(tokens, model, max_n_logits=3)
    return {
        **logits,
        "clean": clean,
        "adjacency": graph.adjacency_matrix,
        "features": graph.active_features,
        "selected": graph.selected_features,
    }


class Tokenizer:
    """The ids themselves."""

    vocab_size, bos_token_id, pad_token_id, eos_token_id, all_special_ids = 30, 1, 1, 1, (1,)
    padding_side = "right"

    def decode(self, ids):
        return str(ids)


def _transcoder_set(folder):
    import os

    import yaml
    from circuit_tracer.utils.hf_utils import load_transcoders

    os.chdir(folder)
    config = yaml.safe_load(Path("config.yaml").read_text())
    return load_transcoders(config, device=torch.device("cpu"), lazy_decoder=False)


def main():
    action, folder, x, out = sys.argv[1], *map(Path, sys.argv[2:])
    with torch.no_grad() if action not in ("attribute", "circuits") else torch.enable_grad():
        result = globals()[action](folder.resolve(), load_file(x)["x"])
    save_file({name: value.detach().contiguous() for name, value in result.items()}, out.resolve())


if __name__ == "__main__":
    main()
