"""From parameters to the config of the transcoder that they ask for."""

from typing import Any

from pydantic import ValidationError

from transcoders.core.errors import UserError
from transcoders.dictionary.config import TranscoderConfig
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
    size = settings.d_hidden
    d_hidden = latents_of(size, d_model)
    if settings.k > d_hidden:
        raise UserError(f"train.k: {settings.k} is more than train.d_hidden {size} = {d_hidden} latents")
    d_hidden = max(1, round(variant.d_hidden_share * d_hidden))
    k = max(1, round(variant.k_share * settings.k))
    try:
        return TranscoderConfig(
            encoder=variant.encoder,
            d_in=d_model,
            d_out=d_model,
            d_hidden=d_hidden,
            k=k,
            prefixes=variant.sizes(d_hidden),
            prefix_k=variant.ks(k),
            skip=variant.skip,
            input_scale=statistics.x_scale,
            output_scale=statistics.y_scale,
            provenance={**provenance, "train": settings.model_dump(mode="json")},
        )
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"variants.{provenance.get('variant')}: {reason}") from None
