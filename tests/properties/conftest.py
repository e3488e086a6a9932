"""The same examples every time, and no time limit that a busy machine would break."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, max_examples=30, suppress_health_check=list(HealthCheck)
)
settings.load_profile("repeatable")
