"""What kinds of encoders there are, for settings that need not load them."""

from typing import Literal

EncoderName = Literal["topk", "groupmax", "batchtopk", "jumprelu", "relu"]
