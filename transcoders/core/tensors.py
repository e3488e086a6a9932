"""Writing tensors to files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from transcoders.core.files import replacing


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named ``tensors`` to a safetensors file, whole or not at all, for whom the umask lets read it."""
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        contiguous = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
        save_file(contiguous, temporary, metadata=metadata)  # puts a file in its place that nobody else may read
        temporary.chmod(mode)
