"""Runs of a language model around one MLP: complete ones, and ones that start at the MLP's block.

What enters the block does not depend on what replaces its MLP, so only a clean run goes through the blocks below.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoders.language.taps import Tap

log = logging.getLogger(__name__)
PROBE_TOKENS = 8
TOLERANCE = 1e-5

Tokens = Int[Tensor, "contexts length"]
States = Float[Tensor, "contexts length d_model"]


class CleanPass(NamedTuple):
    """Hold what the untouched model makes of some contexts."""

    entering: States
    """The residual stream that enters the tap's block."""
    final: States
    """The last block's output after the final norm."""


class Passes:
    """Run a TransformerLens bridge around the MLP at a tap.

    A run that starts at the block goes through the model's own code: the blocks below hand their input on, and the
    last of them hands on what a clean run left there. Whether that gives what complete runs give is tried on a few
    tokens; where it does not, every run is complete.
    """

    def __init__(self, bridge: Any, tap: Tap) -> None:
        """Take the bridge's blocks, and try whether runs may start at the tap's."""
        self.model = bridge.original_model
        self.device = next(self.model.parameters()).device
        self._bridge = bridge
        self._blocks = [block.original_component for block in bridge.blocks]
        self._layer = tap.layer
        self._hook_in, self._hook_out = (bridge.hook_dict[name].name for name in (tap.hook_in, tap.hook_out))
        self._tuple_length: int | None = None
        """How many values a block returns in a tuple; None where it returns the residual stream alone."""
        self.resumes = tap.layer > 0 and self._try_to_resume()

    @torch.no_grad()
    def clean(self, tokens: Tokens) -> CleanPass:
        """Run the untouched model."""
        outputs: list[Any] = []
        below = self._blocks[max(self._layer - 1, 0)]
        handle = below.register_forward_hook(lambda block, arguments, output: outputs.append(output))
        try:
            final = self._run(tokens)
        finally:
            handle.remove()
        output = outputs[0]
        self._tuple_length = len(output) if isinstance(output, tuple) else None
        return CleanPass(output[0] if isinstance(output, tuple) else output, final)

    @torch.no_grad()
    def mlp(self, tokens: Tokens, entering: States) -> tuple[States, States]:
        """Return x and y of the tap's MLP in a clean run, of which ``entering`` entered the block."""
        caught: dict[str, Tensor] = {}

        def catch(value: Tensor, hook: Any) -> None:
            caught[hook.name] = value

        with self._only(range(self._layer, self._layer + 1), entering):
            self._run(tokens, (self._hook_in, catch), (self._hook_out, catch))
        return caught[self._hook_in], caught[self._hook_out]

    @torch.no_grad()
    def replaced(self, tokens: Tokens, entering: States, y: States) -> States:
        """Return the final states with ``y`` in the place of the MLP's output at every token but the first, BOS."""

        def splice(value: Tensor, hook: Any) -> Tensor:
            return torch.cat([value[:, :1], y[:, 1:]], dim=1)

        with self._only(range(self._layer, len(self._blocks)), entering):
            return self._run(tokens, (self._hook_out, splice))

    def _run(self, tokens: Tokens, *hooks: tuple[str, Any]) -> States:
        with self._bridge.hooks(fwd_hooks=list(hooks)):
            states: Tensor = self.model.base_model(tokens, use_cache=False).last_hidden_state
        return states

    @contextmanager
    def _only(self, blocks: range, entering: States) -> Iterator[None]:
        """Let the blocks outside ``blocks`` hand their input on, the one below these ``entering``, while this lasts."""
        skipped = [n for n in range(len(self._blocks)) if n not in blocks] if self.resumes else []
        for number in skipped:
            instead = entering if number == blocks.start - 1 else None
            self._blocks[number].forward = self._hand_on(instead)  # on the instance, before its class's
        try:
            yield
        finally:
            for number in skipped:
                del self._blocks[number].forward

    def _hand_on(self, instead: States | None) -> Any:
        """Return a block's forward that returns its input, or ``instead``, in the shape of the model's blocks."""

        def forward(*arguments: Any, **options: Any) -> Any:
            states = arguments[0] if arguments else options["hidden_states"]
            states = states if instead is None else instead
            return states if self._tuple_length is None else (states, *[None] * (self._tuple_length - 1))

        return forward

    def _try_to_resume(self) -> bool:
        """Return whether runs that start at the block give what complete ones give, MLP and all."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        tokens = torch.arange(PROBE_TOKENS, device=self.device)[None] % vocabulary
        self.resumes = False
        entering, final = self.clean(tokens)
        complete = (*self.mlp(tokens, entering), final)
        self.resumes = True
        try:
            x, y = self.mlp(tokens, entering)
            resumed = (x, y, self.replaced(tokens, entering, y))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            log.info("runs of %s are complete ones: %s", type(self.model).__name__, error)
            return False
        return all(float((a - b).norm()) <= TOLERANCE * float(b.norm()) for a, b in zip(resumed, complete, strict=True))
