"""Starting a command once per process under torchrun's agent, and ending it with one line."""

import logging
import os
import sys
import time
from collections.abc import Callable

from transcoders.core.errors import UserError
from transcoders.distributed.settings import DistributedSettings

log = logging.getLogger(__name__)
SECONDS_FOR_THE_CAUSE = 10.0
USER_ERROR = "UserError: "


def launched(settings: DistributedSettings, work: Callable[[], None]) -> None:
    """Do ``work`` here, or in ``settings.processes`` copies of the running command, if that is more than one.

    Raises:
        UserError: a copy failed; the message is of the first that did.
    """
    if "RANK" in os.environ:
        _work_as_rank(work)
    elif settings.world == 1:
        work()
    else:
        _launch(settings)


def _launch(settings: DistributedSettings) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for noisy in ("torch.distributed", "torch.distributed.elastic"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "stages are started by python -m"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // settings.processes)))
    config = LaunchConfig(
        min_nodes=settings.hosts,
        max_nodes=settings.hosts,
        nproc_per_node=settings.processes,
        run_id=" ".join([spec.name, *sys.argv[1:]]).replace(" ", "_"),
        rdzv_backend="c10d",
        rdzv_endpoint=settings.rendezvous or "localhost:0",
        max_restarts=settings.restarts,
    )
    try:
        elastic_launch(config, sys.executable)("-m", spec.name, *sys.argv[1:])
    except ChildFailedError as error:
        raise UserError(_cause(error)) from None
    except RendezvousError:
        raise UserError(
            f"distributed.rendezvous: the hosts of the job did not meet at {settings.rendezvous}, or one of them left "
            "and says why; rerun on all of them to continue"
        ) from None
    except SignalException as error:
        raise KeyboardInterrupt from error


def _cause(error: object) -> str:
    """Return one line on the failure that the others followed from; a bug's traceback is logged before it."""
    failures = error.failures  # type: ignore[attr-defined]
    rank, failure = min(
        failures.items(),
        key=lambda item: (item[1].exitcode == -15, "PeerError" in str(item[1].message), item[1].timestamp),
    )
    if isinstance(failure.message, str):
        sys.stderr.write("\n")  # a progress bar that was cut off may stand there
        return f"process {rank} of the job ended: {failure.message}; rerun to continue"
    message: str = failure.message["message"]
    if message.startswith(USER_ERROR):
        return message.removeprefix(USER_ERROR)
    log.error("%s", failure.message["extraInfo"]["py_callstack"].rstrip())
    return f"process {rank} of the job ended: {' '.join(message.split())}"


def _work_as_rank(work: Callable[[], None]) -> None:
    """Do ``work`` as one process of the job, and leave it to the agent to report errors: once, and the cause alone."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from transcoders.distributed.ranks import PeerError

    if os.environ["RANK"] != "0":
        logging.getLogger().setLevel(logging.WARNING)
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        work()
        return
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, PeerError):
            time.sleep(SECONDS_FOR_THE_CAUSE)  # so that the process that failed first is seen first
        get_error_handler().record_exception(error)
        sys.stderr.flush()
        os._exit(1)  # other threads, and sockets to processes that are gone, hold up an orderly end
