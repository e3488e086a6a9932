"""From parameters to the config of the transcoder that they ask for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.training.settings import TrainSettings, VariantSettings, latents_of
from transcoders.training.start import Statistics


def config_of(
    settings: TrainSettings,
    variant: VariantSettings,
    d_model: int,
    statistics: Statistics,
    provenance: dict[str, Any],
) -> TranscoderConfig:
    """Return the config of ``variant`` for activations of width ``d_model`` with the scales of ``statistics``.

    Raises:
        UserError: sizes do not fit each other; the variant's name is in ``provenance``.
    """
    with _mistakes_of(provenance):
        return TranscoderConfig(
            d_in=d_model,
            d_out=d_model,
            input_scale=statistics.x_scale,
            output_scale=statistics.y_scale,
            **_sizes(settings, variant, d_model),
            provenance={**provenance, "train": settings.model_dump(mode="json")},
        )


def cross_layer_config_of(
    settings: TrainSettings,
    variant: VariantSettings,
    d_model: int,
    statistics: Mapping[int, Statistics],
    provenance: dict[str, Any],
) -> CrossLayerConfig:
    """Return the config of ``variant`` across the layers of ``statistics``, each with as many latents as ``config_of``.

    Raises:
        UserError: sizes do not fit each other; the variant's name is in ``provenance``.
    """
    with _mistakes_of(provenance):
        return CrossLayerConfig(
            layers=tuple(statistics),
            reach=None if variant.reach == "all" else variant.reach,
            budget=variant.budget,
            d_model=d_model,
            input_scales=tuple(of_layer.x_scale for of_layer in statistics.values()),
            output_scales=tuple(of_layer.y_scale for of_layer in statistics.values()),
            **_sizes(settings, variant, d_model),
            provenance={**provenance, "train": settings.model_dump(mode="json")},
        )


def _sizes(settings: TrainSettings, variant: VariantSettings, d_model: int) -> dict[str, Any]:
    """Return the encoder, the numbers of latents and of active ones, and whether there is a skip connection."""
    size = settings.d_hidden
    d_hidden = latents_of(size, d_model)
    if settings.k > d_hidden:
        raise UserError(f"train.k: {settings.k} is more than train.d_hidden {size} = {d_hidden} latents")
    d_hidden = max(1, round(variant.d_hidden_share * d_hidden))
    k = max(1, round(variant.k_share * settings.k))
    return {
        "encoder": variant.encoder,
        "d_hidden": d_hidden,
        "k": k,
        "prefixes": variant.sizes(d_hidden),
        "prefix_k": variant.ks(k),
        "skip": variant.skip,
    }


@contextmanager
def _mistakes_of(provenance: dict[str, Any]) -> Iterator[None]:
    """Raise what is wrong with a config as a mistake in its variant."""
    try:
        yield
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"variants.{provenance.get('variant')}: {reason}") from None
