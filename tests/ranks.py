"""Several processes that work as one, for tests: as the launcher starts them, or without it, which is quicker."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def launch(log: Path, *script: str) -> subprocess.Popen[str]:
    """Two ranks of a script by Paddle's launcher, whose logs of them go into a folder."""
    command = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(log), *script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start(count: int, *script: str) -> list[subprocess.Popen[str]]:
    """So many ranks of a script, by hand."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends = [f"127.0.0.1:{port + number}" for number in range(count)]
    common = {
        "PADDLE_TRAINERS_NUM": str(count),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(ends),
        "PADDLE_MASTER": ends[0],
        "PADDLE_DISTRI_BACKEND": "gloo",
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, *script],
            cwd=ROOT,
            env={**os.environ, **common, "PADDLE_TRAINER_ID": str(number), "PADDLE_CURRENT_ENDPOINT": end},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, end in enumerate(ends)
    ]
