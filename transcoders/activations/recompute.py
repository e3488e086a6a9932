"""y of stores that hold x alone: the model's own MLP, without the rest of the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn

from transcoders.activations.store import Store
from transcoders.core.errors import UserError
from transcoders.core.provenance import PROVENANCE, model_hash


def open_store(path: Path, model: Path, device: torch.device) -> Store:
    """Open the store at ``path``; where it lacks y, the MLP in the model's folder ``model`` makes it, on ``device``.

    Raises:
        UserError: the store or the model is missing or damaged, or the model is another one.
    """
    store = Store(path)
    if "mlp_out" not in store.held:
        if not (model / PROVENANCE).is_file():
            raise UserError(
                f"{model}: holds no model, but {path} needs one (collect.outputs: recomputed); run `dvc repro model`"
            )
        if model_hash(model) != store.attributes["model_hash"]:
            raise UserError(f"{model}: is not the model that {path} was collected from; run `dvc repro collect`")
        store.mlp = load_mlp(model, store.attributes["mlp"], store.attributes["mlp_scale"], device)
    return store


def load_mlp(folder: Path, modules: Sequence[str], scale: float, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what ``modules`` of the model in ``folder`` make of x, one after the other, times ``scale``, in float32.

    Only their own weights are read.

    Raises:
        UserError: the model's classes and files do not name them alike.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))  # type: ignore[no-untyped-call]
    try:
        parts = [model.get_submodule(name) for name in modules]
        for name, part in zip(modules, parts, strict=True):
            part.load_state_dict(_tensors(folder, f"{name}."), assign=True)
    except (AttributeError, RuntimeError) as error:
        raise UserError(
            f"collect.outputs: recomputed needs the weights of {' and '.join(modules)} alone, and {folder} does not "
            f"hold them under these names ({str(error).splitlines()[0]}); use collect.outputs: stored"
        ) from None
    mlp = nn.Sequential(*parts).to(device).eval().requires_grad_(False)

    def outputs(x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens d"]:
        y: Tensor = mlp(x.to(device)[None])[0]  # of one context: mixtures of experts want the dimension
        return (y if scale == 1 else y * scale).to(x.device)

    return outputs


def _tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            names = [name for name in weights.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors |= {name.removeprefix(prefix): weights.get_tensor(name).float() for name in names}
    return tensors
