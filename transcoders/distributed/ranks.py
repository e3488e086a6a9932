"""The processes of a job, in a grid: those that share a batch, and those that share a dictionary."""

# torch leaves `Function.apply` untyped.
# mypy: disable-error-code="no-untyped-call"

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from transcoders.core.devices import resolve_device
from transcoders.core.errors import UserError

PATIENCE = {"gloo": timedelta(hours=12), "nccl": timedelta(minutes=30)}
"""How long a process waits for another: gloo notices at once when one dies, nccl not always."""
DIGITS = ((20, 11), (10, 10), (0, 10))
"""(shift, bits) of the digits of a positive float's 31 bits, which order as its value does."""
T = TypeVar("T")


class PeerError(RuntimeError):
    """Report that another process is gone: not the cause of a failure, but a consequence of one."""


@dataclass(frozen=True)
class Team:
    """Connect processes that call the same methods in the same order; a team of one does nothing, at no cost."""

    rank: int = 0
    size: int = 1
    handle: Any = None
    global_ranks: tuple[int, ...] = (0,)

    def share(self, count: int) -> slice:
        """Return this rank's part of ``count`` consecutive things; where there are few, the first ranks have them."""
        return slice(*(-(-count * rank // self.size) for rank in (self.rank, self.rank + 1)))

    def sum_(self, value: Tensor) -> Tensor:
        """Replace ``value`` by its sum over the ranks, and return it."""
        return self._reduce_(value, dist.ReduceOp.SUM)

    def min_(self, value: Tensor) -> Tensor:
        """Replace ``value`` by its least over the ranks, and return it."""
        return self._reduce_(value, dist.ReduceOp.MIN)

    def total(self, number: int, device: torch.device) -> int:
        """Return the sum of a number over the ranks."""
        return number if self.size == 1 else int(self.sum_(torch.tensor(number, device=device)))

    def summed(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks, where every rank goes on to compute the same loss from it.

        So the gradient of each rank's part is that of the sum, and going back costs no message.
        """
        return value if self.size == 1 else _Summed.apply(value, self)

    def gathered(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "ranks *shape"]:
        """Return the values of all ranks, which have one shape."""
        if self.size == 1:
            return value[None]
        parts = [torch.empty_like(value) for _ in range(self.size)]
        with _peers():
            dist.all_gather(parts, value.contiguous(), group=self.handle)
        return torch.stack(parts)

    @torch.no_grad()
    def kth_largest(self, values: Float[Tensor, "here"], k: int) -> Float[Tensor, ""]:
        """Return the exact k-th largest of all ranks' non-negative float32 ``values``; 0 if there are fewer.

        A radix select: per digit the ranks add up a histogram, and go on within the bin that holds the k-th, so that
        no rank gathers the values of another.
        """
        bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 positive
        kth = bits.new_zeros(())
        left = torch.tensor(k, device=bits.device)
        for shift, width in DIGITS:
            digits = (bits >> shift) & (2**width - 1)
            counts = self.sum_(torch.bincount(digits, minlength=2**width))
            at_least = counts.flip(0).cumsum(0).flip(0)
            digit = ((at_least >= left).sum() - 1).clamp(min=0)
            left = left - (at_least[digit] - counts[digit])
            bits = bits[digits == digit]
            kth = kth | (digit << shift).int()
        return kth.view(torch.float32)

    def broadcast_(self, value: Tensor) -> None:
        """Replace ``value`` by that of rank 0."""
        if self.size > 1:
            with _peers():
                dist.broadcast(value, self.global_ranks[0], group=self.handle)

    def send_to_first(self, value: Tensor, sender: int) -> Tensor:
        """Send the ``value`` of ``sender`` to rank 0, into its ``value`` of the same shape, and return ``value``."""
        with _peers():
            if sender != 0 and self.rank == sender:
                dist.send(value.contiguous(), self.global_ranks[0], group=self.handle)
            elif sender != 0 and self.rank == 0:
                dist.recv(value, self.global_ranks[sender], group=self.handle)
        return value

    def add_gradients_(self, parameters: list[Tensor], others: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Sum the gradients over the ranks: matrices where they lie, the rest in one message with ``others``."""
        if self.size == 1:
            return others
        gradients = [p.grad for p in parameters if p.grad is not None]
        small = [gradient for gradient in gradients if gradient.ndim == 1]
        for gradient in gradients:
            if gradient.ndim > 1:
                self.sum_(gradient)
        together = self.sum_(torch.cat([*small, others]))
        *parts, others = together.split([*map(len, small), len(others)])
        for gradient, part in zip(small, parts, strict=True):
            gradient.copy_(part)
        return others

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            with _peers():
                dist.barrier(self.handle)

    def _reduce_(self, value: Tensor, operation: Any) -> Tensor:
        if self.size > 1:
            with _peers():
                dist.all_reduce(value, operation, group=self.handle)
        return value


@dataclass(frozen=True)
class Ranks:
    """Place this process among all: ``data`` share the tokens of each batch, ``latents`` share a dictionary."""

    world: Team = field(default_factory=Team)
    data: Team = field(default_factory=Team)
    latents: Team = field(default_factory=Team)

    @property
    def first(self) -> bool:
        """Say whether this process writes files, logs and draws progress bars for all."""
        return self.world.rank == 0

    def decided(self, work: Callable[[], T]) -> T:
        """Return what ``work`` gave on the first rank; the others do not run it."""
        if self.world.size == 1:
            return work()
        result = [work() if self.first else None]
        with _peers():
            dist.broadcast_object_list(result, 0)
        return result[0]  # type: ignore[return-value]


ALONE = Ranks()


def local_device(name: str) -> torch.device:
    """Return the device of ``resolve_device``, or, with several processes on a host, a GPU for this one alone.

    Raises:
        UserError: ``name`` is one GPU, or there are fewer GPUs than processes.
    """
    device = resolve_device(name)
    if device.type != "cuda" or int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == 1:
        return device
    if device.index is not None:
        raise UserError(f"device: {name!r} is one GPU; with distributed.processes above 1 use device: cuda")
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise UserError(
            f"distributed.processes: {os.environ['LOCAL_WORLD_SIZE']} processes, but this host has "
            f"{torch.cuda.device_count()} GPUs"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def joined(device: torch.device, latents: int = 1) -> Iterator[Ranks]:
    """Yield the ranks of the job that torchrun's environment describes; without one, ``ALONE``.

    They talk through nccl on CUDA, through gloo elsewhere.

    ``latents`` neighbouring ranks (one host's, where they fit) share a dictionary.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    cuda = device.type == "cuda"
    backend = "nccl" if cuda else "gloo"
    # A job that torchrun restarted finds the old one's addresses in the store: each attempt has its own keys.
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE[backend]))
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=PATIENCE[backend], device_id=device if cuda else None
    )
    try:
        world = Team(dist.get_rank(), dist.get_world_size(), dist.group.WORLD, tuple(range(dist.get_world_size())))
        yield grid(world, latents)
    finally:
        dist.destroy_process_group()


def grid(world: Team, latents: int) -> Ranks:
    """Divide ``world``: neighbouring ranks share a dictionary; those at the same place in theirs share the batches.

    Raises:
        UserError: ``latents`` does not divide the number of processes.
    """
    if world.size % latents:
        raise UserError(f"distributed.latents: {latents} does not divide the {world.size} processes of the job")
    rows = [tuple(range(start, start + latents)) for start in range(0, world.size, latents)]
    return Ranks(world, _team_of(list(zip(*rows, strict=True)), world.rank), _team_of(rows, world.rank))


def _team_of(members: list[tuple[int, ...]], rank: int) -> Team:
    """Return the team that ``rank`` is in; every rank takes part in making all of them."""
    handles = [
        dist.new_group(list(ranks), timeout=PATIENCE[dist.get_backend()]) if len(ranks) > 1 else None
        for ranks in members
    ]
    for ranks, handle in zip(members, handles, strict=True):
        if rank in ranks:
            return Team(ranks.index(rank), len(ranks), handle, ranks)
    raise AssertionError(f"rank {rank} is in none of {members}")


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerError(f"another process of the job is gone ({' '.join(str(error).split())})") from error


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, team: Team) -> Tensor:
        return team.sum_(value.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
