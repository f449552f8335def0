"""Several processes on this machine, joined over loopback: one command in place of one per host.

Each runs the very command that it would run on a host of its own. None can go on without the
others, so the first that ends early ends all.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from typing import IO


def run_all(arguments: list[str], processes: int) -> int:
    """Run python -m ARGUMENTS in so many processes; the exit status is 0 if all came to their end.

    Process 0 writes to this one's standard output. What else they print is kept, and printed after
    their end: of a process that failed, with the reason why it ended.
    """
    port = free_port()
    ended: queue.Queue[int] = queue.Queue()
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(processes)]
        running: list[subprocess.Popen[bytes]] = []
        try:
            for number, log in enumerate(logs):
                join = [f"--coordinator=127.0.0.1:{port}", f"--process-id={number}"]
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *arguments, *join, f"--started-by={os.getpid()}"],
                        stdout=log if number else None,
                        stderr=log,
                    )
                )
                threading.Thread(target=_tell, args=(running, number, ended), daemon=True).start()
            for _ in running:
                first = ended.get()
                status = running[first].returncode
                if status:
                    return _failed(first, status, logs[first])
        finally:
            for process in running:
                process.kill()
                process.wait()
        for number, log in enumerate(logs):
            if text := _read(log):
                print(f"Process {number} printed:\n{text}", file=sys.stderr)
    return 0


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def end_with(parent: int) -> None:
    """End this process when the one that started it is no more, be it killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tell(running: list[subprocess.Popen[bytes]], number: int, ended: queue.Queue[int]) -> None:
    running[number].wait()
    ended.put(number)


def _failed(number: int, status: int, log: IO[str]) -> int:
    how = f"ended with status {status}"
    if status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
    text = _read(log)
    printed = f"It printed:\n{text}" if text else "It printed nothing."
    print(f"Process {number} {how}; the others were stopped. {printed}", file=sys.stderr)
    return status if status > 0 else 128 - status


def _read(log: IO[str]) -> str:
    log.seek(0)
    return log.read().rstrip()
