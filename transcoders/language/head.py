"""From a language model's final states to its logits, block by block of the vocabulary."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from transcoders.core.errors import UserError

PROBE_TOKENS = 8
TOLERANCE = 1e-5
VOCABULARY = slice(None)


class Head(NamedTuple):
    """Hold what makes logits of final states: ``cap(scale * (states W_U^T + bias))``."""

    weight: Float[Tensor, "vocabulary d_model"]
    """The model's own unembedding W_U, not a copy."""
    bias: Float[Tensor, "vocabulary"] | None
    scale: float
    """1 in most families; Cohere multiplies logits, Granite divides them."""
    cap: float | None
    """Gemma 2 bounds logits: ``cap * tanh(logits / cap)``."""

    def logits(
        self, states: Float[Tensor, "tokens d_model"], block: slice = VOCABULARY, out: Tensor | None = None
    ) -> Float[Tensor, "tokens block"]:
        """Return the logits of a ``block`` of the vocabulary, in the memory of ``out`` if it is given."""
        logits = torch.mm(states, self.weight[block].T, out=out)
        if self.bias is not None:
            logits += self.bias[block]
        if self.scale != 1:
            logits *= self.scale
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)


@torch.no_grad()
def read_head(model: Any) -> Head:
    """Read the head of a Hugging Face causal model, and hold it against the model's own logits of a few tokens.

    The scale, which every family keeps under another name, is measured there.

    Raises:
        UserError: the model makes its logits in another way.
    """
    module, config = model.get_output_embeddings(), model.config.get_text_config()
    bias = getattr(module, "bias", None)
    bias = None if bias is None or not bias.any() else bias.detach()
    cap = getattr(config, "final_logit_softcapping", None)
    head = Head(module.weight.detach(), bias, 1.0, cap)
    tokens = torch.arange(PROBE_TOKENS, device=head.weight.device)[None] % len(head.weight)
    states = model.base_model(tokens, use_cache=False).last_hidden_state[0]
    expected = model(tokens, use_cache=False).logits[0]
    if cap is None:
        plain = head.logits(states).double()
        scale = float((plain * expected).sum() / plain.square().sum())
        head = head._replace(scale=scale if abs(scale - 1) > TOLERANCE else 1.0)
    error = float((head.logits(states) - expected).norm() / expected.norm())
    if not error < TOLERANCE:
        raise UserError(
            f"model.name: {type(model).__name__} does more to its final states than a matrix, a bias, a scale and a "
            f"soft-cap (relative error of the logits {error:.2g}), so no loss can be measured; choose another model"
        )
    return head
