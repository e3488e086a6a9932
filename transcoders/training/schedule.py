"""The learning rate over a run."""


def learning_rate(step: int, steps: int, peak: float, warmup: float, decay: float) -> float:
    """Return the rate of ``step`` (from 0) out of ``steps``, at most ``peak``.

    It rises linearly over the first ``warmup`` share, and falls linearly to zero over the last ``decay``.
    """
    rising = (step + 1) / max(1.0, warmup * steps)
    falling = (steps - step) / max(1.0, decay * steps)
    return peak * min(1.0, rising, falling)
