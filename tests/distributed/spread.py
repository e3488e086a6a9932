"""Starting the ranks of a test's job."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def spread(processes, script, *arguments, jobs):
    """Run ``script`` as so many ranks; their exit statuses and what they said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE.parent}",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, str(HERE / script), *map(str, arguments), json.dumps(jobs)]
    ranks = [
        subprocess.Popen(command, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    stderr = [rank.communicate(timeout=300)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], stderr
