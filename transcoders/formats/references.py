"""How transcoders of others are named in parameters and in tables."""


def layer_of(text: str) -> tuple[str, int | None]:
    """Split ``reference@layer``, as it is written where the reference itself does not tell the layer."""
    reference, at, layer = text.rpartition("@")
    return (reference, int(layer)) if at and layer.isdigit() else (text, None)


def names_of(references: list[str]) -> list[str]:
    """Return the folders' names, where these tell them apart and say enough (``layer_9_width_16k_l0_small``)."""
    folders = [reference.partition(":")[2] or reference for reference in references]
    short = [folder.strip("/").rpartition("/")[2] for folder in folders]
    clear = [name.startswith("layer") and short.count(name) == 1 for name in short]
    return [name if enough else full for name, enough, full in zip(short, clear, references, strict=True)]
