"""The matrix of `python -m verify --only interop`: every row in every context.

The contexts on one device are judged here. Those on eight devices, and on two processes, run in
processes of their own (`verify.interop.worker`), which print a line for each judgement.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from verify.interop import contexts, devices, worker
from verify.interop.rows import Row, every_row
from verify.report import Report

ON_ONE = "on one device, ours against autodiff of the same"
ON_MORE = {
    **dict.fromkeys(devices.DEVICES, "on eight virtual devices"),
    **dict.fromkeys(worker.ON_TWO_PROCESSES, "on two processes with four devices each"),
}
WITHIN = "within bounds that hold for any order of summation"


def run(report: Report, *, families: list[str] | None = None) -> None:
    """Judge every row in every context.

    Args:
        report: where it goes.
        families: of the rows; all by default.
    """
    rows = [row for row in every_row() if not families or row.family in families]
    chosen = [f"--family={row.family}" for row in rows] if families else []
    with ExitStack() as stack:
        eight = stack.enter_context(worker_of("eight devices", chosen))
        _on_one_device(report, rows)
        port = f"--port={_free_port()}"
        first = stack.enter_context(worker_of("the first of two processes", [port, *chosen]))
        second = ["--process=1", port, *chosen]
        other = stack.enter_context(worker_of("the second of two processes", second))
        total = len(rows) * len(ON_MORE)
        with report.working("interop on devices", total) as advance:
            gather(report, [eight, first, other], advance)


def _on_one_device(report: Report, rows: list[Row]) -> None:
    with report.working("interop", len(rows) * len(contexts.CONTEXTS)) as advance:
        for row in rows:
            for context in contexts.CONTEXTS:
                advance(row.name[:60])
                if why := contexts.why_not(context, row):
                    report.omit(row.family, context, why)
                    continue
                try:
                    verdict = contexts.judge(row, context)
                    ok, figure = verdict.ok, verdict.figure
                    failure = f"{row}: {verdict.first_wrong} {verdict.why}"
                except Exception as error:  # one row that can't be run doesn't end the others
                    ok, figure, failure = False, 0.0, f"{row}: {type(error).__name__}: {error}"
                report.level(context, ON_ONE).judged(ok, figure, failure, row.family)


@dataclass
class Worker:
    """A process of `verify.interop.worker`, and the files that it writes to."""

    name: str
    process: subprocess.Popen[bytes]
    out: IO[str]
    errors: IO[str]
    rest: str = field(default="")
    """The beginning of a line that isn't whole yet."""

    def lines(self) -> Iterator[dict[str, Any]]:
        """The judgements since the last call."""
        *whole, self.rest = (self.rest + self.out.read()).split("\n")
        for line in whole:
            if line.startswith("{"):  # others are the libraries' own
                yield json.loads(line)


@contextmanager
def worker_of(name: str, arguments: list[str]) -> Iterator[Worker]:
    """A worker with these arguments, ended when the context is."""
    with (
        tempfile.NamedTemporaryFile("w+") as out,
        tempfile.NamedTemporaryFile("w+") as errors,
        open(out.name) as written,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "verify.interop.worker", *arguments],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=out,
            stderr=errors,
        )
        try:
            yield Worker(name, process, written, errors)
        finally:
            process.kill()
            process.wait()


def gather(report: Report, workers: list[Worker], advance: Callable[..., None]) -> None:
    """Take down what workers find, until all have ended."""
    running = list(workers)
    while running:
        time.sleep(0.1)
        for each in list(running):
            ended = each.process.poll() is not None  # asked first: what it wrote is there then
            for found in each.lines():
                advance(found["context"])
                _include(report, found)
            if ended:
                running.remove(each)
                if each.process.returncode:
                    _failed(report, each)
                    return  # the other of two processes would wait for it


def _include(report: Report, found: dict[str, Any]) -> None:
    family, context = found["family"], found["context"]
    if why := found.get("omitted"):
        report.omit(family, context, why)
        return
    level = report.level(context, f"{ON_MORE[context]}, {WITHIN}")
    level.judged(found["ok"], found["figure"], found["failure"], family)


def _failed(report: Report, worker: Worker) -> None:
    """A worker that didn't come to its end is a failure, with what it said last."""
    worker.errors.seek(0)
    said = " | ".join(worker.errors.read().strip().splitlines()[-5:])
    failure = f"{worker.name} ended with status {worker.process.returncode}: {said}"
    report.level("devices", "processes that came to their end").judged(False, 0.0, failure)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
