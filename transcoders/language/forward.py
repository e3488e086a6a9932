"""Running a language model as far as its MLPs are read."""

from typing import Any

from torch import Tensor

from transcoders.language.taps import Tap


def forward(bridge: Any, tokens: Tensor, layer_taps: list[Tap]) -> dict[str, Tensor]:
    """Run ``tokens`` [contexts, length] up to the last tapped layer; return the hooked tensors by hook name."""
    caught: dict[str, Tensor] = {}

    def catch(value: Tensor, hook: Any) -> None:
        caught[hook.name] = value

    names = {name for tap in layer_taps for name in (tap.hook_in, tap.hook_out)}
    hooks = [(bridge.hook_dict[name].name, catch) for name in names]
    last = max(tap.layer for tap in layer_taps)
    stop = {"stop_at_layer": last + 1} if last + 1 < len(bridge.blocks) else {}
    bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type=None, use_cache=False, **stop)
    return {name: caught[bridge.hook_dict[name].name] for name in names}
