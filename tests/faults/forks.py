"""Runs stages in processes of their own, as ``python -m`` does, without importing torch for each of them.

A server (``python forks.py``) imports what the stages import and forks a child for every job; so a
stage takes the time of its own work, and dozens of kills at random moments of it are cheap.
"""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = (
    "transcoders.figures.runs",
    "transcoders.figures.nested",
    "transcoders.figures.circuits",
    "stages.compare",
    "stages.common.held_out",
    "stages.common.params",
    "transcoders.collecting.publish",
    "transcoders.language.model",
    "transcoders.circuits.suite",
    "transcoders.circuits.connections",
    "transcoders.circuits.picture",
    "transcoders.distributed.launch",
    "transcoders.absorption.suite",
    "transcoders.comparison.pruning",
    "transcoders.absorption.redundancy",
    "transcoders.features.tables",
    "transcoders.features.page",
    "transcoders.features.openai",
    "transcoders.formats.export",
    "transcoders.training.trainer",
    "transformer_lens.model_bridge",
    "transcoders.kernels.cpu.loops",
    "pyarrow.parquet",
    "tabulate",
)
DAY = 86_400.0


class Job(NamedTuple):
    """A stage to run: its module and arguments, and what is done to it."""

    command: tuple[str, ...]
    folder: str
    cache: str
    kill_after: float | None = None
    """Seconds until SIGKILL to its process group."""
    clock: bool = False
    """Let ``time.time`` jump back and forth by a day, and ``time.perf_counter`` forward."""
    environment: tuple[tuple[str, str], ...] = ()


class Done(NamedTuple):
    """How a job ended."""

    status: int
    """Exit status, or minus the signal."""
    seconds: float
    said: str
    """Its standard error and output."""


class Forks:
    """The client: starts the server once and has it run jobs."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, *jobs: Job) -> list[Done]:
        """Run ``jobs`` at the same time, to their ends."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([job._asdict() for job in jobs]) + "\n")
        self._server.stdin.flush()
        return [Done(*done) for done in json.loads(self._server.stdout.readline())]

    def close(self) -> None:
        """End the server."""
        self._server.kill()  # it holds nothing, and an orderly end of torch takes seconds
        self._server.communicate()


def serve() -> None:
    """Answer each line of jobs with a line of results."""
    for name in LIBRARIES:
        import_module(name)
    assert threading.active_count() == 1, "a fork keeps only the thread that calls it"
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        started = [(job, *start(job)) for job in (Job(**job) for job in json.loads(line))]
        answers.write(json.dumps([finish(*one) for one in started]) + "\n")
        answers.flush()


def start(job: Job) -> tuple[int, Path, float]:
    log = Path(tempfile.mkstemp(suffix=".log")[1])  # not on the disk under test
    pid = os.fork()
    if not pid:
        work(job, log)
    with suppress(PermissionError):
        os.setpgid(pid, pid)  # here as well as there: whichever comes first
    return pid, log, time.monotonic()


def finish(job: Job, pid: int, log: Path, began: float) -> Done:
    ended = (0, 0)
    if job.kill_after is not None:
        while not ended[0] and time.monotonic() - began < job.kill_after:
            time.sleep(0.002)
            ended = os.waitpid(pid, os.WNOHANG)
        if not ended[0]:
            os.killpg(pid, signal.SIGKILL)
    status = (ended if ended[0] else os.waitpid(pid, 0))[1]
    said = log.read_text(errors="replace")
    log.unlink()
    return Done(os.waitstatus_to_exitcode(status), time.monotonic() - began, said)


def work(job: Job, log: Path) -> None:
    """In the child: become ``python -m`` and end."""
    status = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), stream)
        os.environ.update(dict(job.environment), XDG_CACHE_HOME=job.cache)
        os.chdir(job.folder)
        if job.clock:
            break_clock()
        sys.argv = list(job.command)
        runpy.run_module(job.command[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            sys.stderr.write(stopped.code + "\n")
        else:
            status = stopped.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def break_clock() -> None:
    """Replace the clocks, wherever they were imported to."""
    rng, wall, counter = random.Random(0), time.time, time.perf_counter
    ahead = [0.0]

    def jumping() -> float:
        return wall() + rng.choice((-DAY, 0.0, DAY))

    def leaping() -> float:
        ahead[0] += rng.choice((0.0, DAY))
        return counter() + ahead[0]

    broken: dict[Any, Any] = {wall: jumping, counter: leaping}
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is wall or value is counter:
                setattr(module, name, broken[value])


if __name__ == "__main__":
    serve()
