"""What training, and whatever else goes by sources, works on: latents of one layer, or of several."""

from pathlib import Path

from transcoders.dictionary.config import TranscoderConfig
from transcoders.dictionary.crosslayer import files
from transcoders.dictionary.crosslayer.config import CrossLayerConfig
from transcoders.dictionary.crosslayer.transcoder import CrossLayerTranscoder
from transcoders.dictionary.transcoder import Transcoder

Config = TranscoderConfig | CrossLayerConfig
Dictionary = Transcoder | CrossLayerTranscoder


def dictionary_of(config: Config) -> Dictionary:
    """Return a dictionary with zero weights."""
    return CrossLayerTranscoder(config) if isinstance(config, CrossLayerConfig) else Transcoder(config)


def save(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary into ``folder``."""
    if isinstance(dictionary, CrossLayerTranscoder):
        files.save(dictionary, folder)
    else:
        dictionary.save(folder)
