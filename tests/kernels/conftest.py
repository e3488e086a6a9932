"""Where there is no GPU, the Triton kernels are interpreted: the same programs, run by numpy."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
