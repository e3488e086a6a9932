"""How many processes share the work of `collect` and `train`."""

from typing import Self

from pydantic import Field, model_validator

from transcoders.core.settings import Settings


class DistributedSettings(Settings):
    """Say where the work runs, not what comes out: no stage reruns when this changes."""

    processes: int = Field(default=1, gt=0)
    """On each host: one a GPU."""
    hosts: int = Field(default=1, gt=0)
    rendezvous: str | None = Field(default=None, pattern=r"^[^:\s]+:[0-9]+$")
    """``name:port`` of one of the hosts, where all of them meet."""
    latents: int = Field(default=1, gt=0)
    """train: so many processes share one dictionary, each holding a slice of its latents."""
    restarts: int = Field(default=0, ge=0)
    """How often a job that lost a process starts again by itself, from its last checkpoint."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.world % self.latents:
            raise ValueError(f"latents: {self.latents} does not divide the {self.world} processes of all hosts")
        if self.hosts > 1 and self.rendezvous is None:
            raise ValueError(f"rendezvous: {self.hosts} hosts need a place to meet, such as node0:29500")
        return self

    @property
    def world(self) -> int:
        """Return the number of processes on all hosts."""
        return self.processes * self.hosts
