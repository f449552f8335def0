"""Training on one device, on several, in several processes: the same program, the same losses.

    python -m verify.scale train                                 on what devices there are
    python -m verify.scale train --devices 8                     8 virtual CPU devices
    python -m verify.scale train --devices 8 --mesh data=4,tensor=2
    python -m verify.scale train --devices 8 --fully-sharded
    python -m verify.scale train --devices 8 --processes 2       4 in each of 2 processes

On several hosts, one command on each, with that host's number, and the address of host 0:

    python -m verify.scale train --processes 2 --process-id 0 --coordinator 10.0.0.1:1234
    python -m verify.scale train --processes 2 --process-id 1 --coordinator 10.0.0.1:1234

And how much the devices tell each other, beside jax.grad's:

    python -m verify.scale collectives

With --checkpoints DIR, which all hosts must see, the same command goes on where a killed one was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import signal
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from verify.scale import comparison
from verify.scale import train as training
from verify.scale.meshes import auto_mesh
from verify.scale.processes import end_with, run_all
from verify.scale.train import TASK, Progress, Settings, Training
from verify.text.checkpoints import checkpoints
from verify.text.corpus import corpus

AXES = ("data", "tensor")


def main(arguments: list[str] | None = None) -> int:
    """Train; the exit status is 0 if all processes came to the end."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["collectives"]:
        return comparison.main()
    options = _parser().parse_args(arguments)
    try:
        return _run(options, arguments)
    except ValueError as error:
        print(f"python -m verify.scale: error: {error}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        if options.processes == 1:
            raise
        print(
            f"Process {options.process_id} can't go on, most likely since another one has ended: "
            f"{error}\nWith --checkpoints the same commands go on from the last one.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # sys.exit would wait for the others to say goodbye


def _run(options: Any, arguments: list[str]) -> int:
    settings, axes, devices = _checked(options)
    alone = options.processes == 1
    if not alone and options.process_id is None:
        return run_all(["verify.scale", *arguments], options.processes)
    if options.started_by:
        end_with(options.started_by)
    if not alone:
        _keep_standard_output()
    training.join(options.coordinator, options.process_id or 0, options.processes, devices)
    jax.config.update("jax_enable_x64", settings.dtype == "float64")
    if axes is None:
        axes = {"data": jax.device_count()}
    training.check_layout(settings, axes, jax.device_count())
    mesh = auto_mesh(**axes)
    run = training.prepare(settings, corpus(), mesh, fully_sharded=options.fully_sharded)
    progress = _train(run, options)
    if options.json and jax.process_index() == 0:
        command = shlex.join(["python", "-m", "verify.scale", *arguments])
        found = {"command": command, **_result(run, progress, options.fully_sharded)}
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verify.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["train", "collectives"])
    where = parser.add_argument_group("layout", "which losses depend on by rounding alone")
    where.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="virtual CPU devices, of all processes together; by default the accelerators that JAX "
        "finds, and one CPU device for each process that this command starts",
    )
    where.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="how many there are; this command starts them all, unless it has a --process-id (1)",
    )
    where.add_argument(
        "--process-id", type=int, metavar="I", help="this command is the I-th, from 0"
    )
    where.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached")
    where.add_argument(
        "--mesh",
        metavar="data=N,tensor=N",
        help="devices that share the batch, and devices that share each matrix (data=all)",
    )
    where.add_argument(
        "--fully-sharded",
        action="store_true",
        help="parameters and adam's moments too are shared along data",
    )
    parser.add_argument(
        "--checkpoints", metavar="DIR", help="save here, and go on from what is saved here"
    )
    parser.add_argument("--json", metavar="FILE", help="write losses, layout and settings there")
    parser.add_argument(
        "--kill-after",
        type=int,
        metavar="N",
        help="SIGKILL this process after step N, the last one where it starts several: to see the "
        "same command go on",
    )
    parser.add_argument("--started-by", type=int, help=argparse.SUPPRESS)
    group = parser.add_argument_group("settings", "of the training")
    for field in dataclasses.fields(Settings):
        if field.name not in ("model", "evaluate_every"):
            kind = {"int": int, "float": float}.get(str(field.type), str)
            default = f"({getattr(TASK, field.name)})"
            group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help=default)
    return parser


def _checked(options: Any) -> tuple[Settings, dict[str, int] | None, int | None]:
    """Settings, mesh and devices of the options, as far as they can be checked before JAX runs."""
    processes, number, devices = options.processes, options.process_id, options.devices
    if processes < 1:
        raise ValueError(f"--processes must be 1 or more, got {processes}.")
    if (number is None) != (options.coordinator is None):
        raise ValueError("--process-id and --coordinator belong together: give both, or neither.")
    if number is not None and not 0 <= number < processes:
        raise ValueError(f"--process-id must be from 0 to {processes - 1}, got {number}.")
    if devices is None and processes > 1 and number is None:
        devices = processes
    if devices is not None and (devices < 1 or devices % processes):
        raise ValueError(
            f"--devices must be a multiple of the {processes} --processes, got {devices}."
        )
    if options.kill_after is not None and options.kill_after < 1:
        raise ValueError(f"--kill-after must be 1 or more, got {options.kill_after}.")
    chosen = {
        field.name: value
        for field in dataclasses.fields(Settings)
        if (value := getattr(options, field.name, None)) is not None
    }
    settings = dataclasses.replace(TASK, **chosen)
    axes = _axes(options.mesh) if options.mesh else None
    if options.fully_sharded and axes and "tensor" in axes:
        raise ValueError("--fully-sharded is along data alone: give it, or a mesh with tensor.")
    if devices is not None:
        training.check_layout(settings, axes or {"data": devices}, devices)
    return settings, axes, devices


def _axes(written: str) -> dict[str, int]:
    """The axes of a mesh, from data=4,tensor=2."""
    axes = {"data": 1}
    for part in written.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or not size.isdecimal() or not int(size):
            raise ValueError(f"--mesh must be like data=4,tensor=2, got {written!r}.")
        axes[name] = int(size)
    return axes


def _keep_standard_output() -> None:
    """Gloo tells of its connections on file 1, from C++: Python's output gets a file of its own."""
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _train(run: Training, options: Any) -> Progress:
    """Train to the end: every process does all of this, process 0 prints."""
    settings = run.settings
    console = Console(quiet=jax.process_index() != 0, highlight=False)
    console.print(_layout_in_words(run, options.fully_sharded))
    with ExitStack() as stack:
        saved = None
        if options.checkpoints:
            saved = stack.enter_context(checkpoints(options.checkpoints, settings, corpus()))
        reached = training.train(run, saved)
        progress = next(reached)
        if progress.step:
            console.print(f"going on after step {progress.step} of {settings.steps}")
        columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
        bar = stack.enter_context(Bar(*columns, TextColumn("{task.fields[loss]}"), console=console))
        task = bar.add_task("", total=settings.steps, completed=progress.step, loss="")
        for progress in reached:
            loss = f"loss {progress.losses[progress.step - 1]:.4f}"
            bar.update(task, completed=progress.step, loss=loss)
            if progress.step == options.kill_after and _last_one(options):
                os.kill(os.getpid(), signal.SIGKILL)
    console.print(
        f"{progress.step} steps in {float(progress.seconds):.1f} s: "
        f"loss {progress.losses[0]:.4f} at first, {progress.losses[-1]:.4f} at last"
    )
    return progress


def _last_one(options: Any) -> bool:
    return not options.started_by or options.process_id == options.processes - 1


def _layout_in_words(run: Training, fully_sharded: bool) -> str:
    mesh, platform = run.rows.mesh, jax.devices()[0].platform
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return (
        f"{platform} devices: {mesh.size}, processes: {jax.process_count()}, mesh: {axes}"
        f"{', fully sharded' * fully_sharded}; process 0 reads {len(training.rows_here(run))} of "
        f"{run.settings.batch} rows"
    )


def _result(run: Training, progress: Progress, fully_sharded: bool) -> dict[str, Any]:
    """What is kept of a training: all that is needed to make it again."""
    return {
        "settings": dataclasses.asdict(run.settings),
        "layout": {
            "processes": jax.process_count(),
            "devices": jax.device_count(),
            "mesh": dict(run.rows.mesh.shape),
            "fully_sharded": fully_sharded,
            "platform": jax.devices()[0].platform,
        },
        "text": corpus().sha256,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        },
        "seconds": round(float(progress.seconds), 1),
        "losses": [float(loss) for loss in progress.losses],
    }


if __name__ == "__main__":
    sys.exit(main())
