"""python -m verify.text gpt: learn English from Python's help, by hand-derived gradients.

    python -m verify.text gpt --json notebooks/04_gpt.json
    python -m verify.text char_lstm --json notebooks/04_char_lstm.json

make the results that the notebook on sequences reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shlex
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from verify.curves import LIMIT, Curves
from verify.text import training
from verify.text.checkpoints import Checkpoints, checkpoints
from verify.text.corpus import Corpus, corpus
from verify.text.training import TASKS, Progress, Settings

POINTS = 200
"""Of the loss curve in the JSON, at most: each is the mean of its neighbours."""


def main(arguments: list[str] | None = None) -> int:
    """Train; the exit status is 0 if it came to its end, and the first steps were jax.grad's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    chosen = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Settings)
        if getattr(options, field.name, None) is not None
    }
    try:
        settings = dataclasses.replace(TASKS[options.model], **chosen)
    except ValueError as error:
        _parser().error(str(error))
    text, console = corpus(), Console()
    if not console.is_terminal:
        console.width = 120
    console.print(str(text), highlight=False)
    network = settings.network(len(text.vocabulary))
    curves = _compare(settings, text, options.autodiff_check, console)
    progress = training.start(settings, network)
    count = sum(leaf.size for leaf in jax.tree.leaves(progress.carry.params))
    console.print(f"{settings.model} with {count:,} parameters", highlight=False)
    with ExitStack() as stack:
        saved = None
        if options.checkpoints:
            saved = stack.enter_context(checkpoints(options.checkpoints, settings, text))
            progress = saved.last(progress)
            if progress.step:
                console.print(f"going on after step {progress.step} of {settings.steps}")
        progress = _train(settings, text, network, progress, saved, options.minutes, console)
    written = training.sample(
        settings,
        network,
        progress.carry.params,
        text,
        jax.random.key(settings.seed),
        temperature=options.temperature,
    )
    rich.print("[dim]a sample:[/dim]")
    console.print(written, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        command = shlex.join(["python", "-m", "verify.text", *arguments])
        found = _result(settings, text, progress, curves, written, command)
        found["parameters"] = count
        Path(options.json).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return 0 if curves is None or curves.ratio <= LIMIT else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verify.text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=TASKS)
    parser.add_argument("--minutes", type=float, help="stop then, wherever the training is")
    parser.add_argument(
        "--checkpoints", metavar="DIR", help="save here, and go on from what is saved here"
    )
    parser.add_argument(
        "--autodiff-check",
        type=int,
        default=50,
        metavar="N",
        help="hold the first N steps against jax.grad's, before training (50; 0: don't)",
    )
    parser.add_argument("--json", metavar="FILE", help="write curve, sample and settings there")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the sample (0.8)")
    group = parser.add_argument_group("settings", "of the training; by default the model's own")
    for field in dataclasses.fields(Settings):
        if field.name != "model":
            kind = float if field.type == "float" else int
            group.add_argument(f"--{field.name.replace('_', '-')}", type=kind)
    return parser


def _bar(console: Console) -> Bar:
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Bar(*columns, console=console)


def _compare(settings: Settings, text: Corpus, steps: int, console: Console) -> Curves | None:
    """The first steps by hand and by jax.grad, None for no steps."""
    if not steps:
        return None
    with _bar(console) as bar:
        task = bar.add_task("jax.grad", total=steps, note="")
        curves = training.compare(settings, text, steps, advance=lambda: bar.advance(task))
    console.print(
        f"the first {steps} losses by hand and by jax.grad are at most {curves.apart:.1e} apart, "
        f"{curves.ratio:.2g} times as far as a rounding of the parameters leads (limit {LIMIT})",
        highlight=False,
    )
    return curves


def _train(
    settings: Settings,
    text: Corpus,
    network: Any,
    progress: Progress,
    saved: Checkpoints | None,
    minutes: float | None,
    console: Console,
) -> Progress:
    note = ""
    with _bar(console) as bar:
        task = bar.add_task(settings.model, total=settings.steps, completed=progress.step, note="")
        for reached in training.train(settings, text, network, progress):
            progress, history, step = reached, reached.history, reached.step
            recent = np.mean(history.losses[max(step - 25, 0) : step])
            checked = history.validation[np.isfinite(history.validation)]
            note = f"loss {recent:.3f}"
            if checked.size:
                note += f", validation {checked[-1]:.4f}"
            bar.update(task, completed=step, note=note)
            late = minutes is not None and history.seconds > 60 * minutes
            if saved and (late or step % settings.save_every == 0 or step == settings.steps):
                saved.save(progress)
            if late:
                break
    console.print(
        f"{progress.step} of {settings.steps} steps in {progress.history.seconds / 60:.1f} minutes:"
        f" {note}",
        highlight=False,
    )
    return progress


def _result(
    settings: Settings,
    text: Corpus,
    progress: Progress,
    curves: Curves | None,
    written: str,
    command: str,
) -> dict[str, Any]:
    """What is kept of a training: small, and with all that is needed to make it again."""
    history, done = progress.history, progress.step
    every = -(-done // POINTS)
    losses = [
        [min(first + every, done), round(float(np.mean(history.losses[first : first + every])), 4)]
        for first in range(0, done, every)
        if first < done
    ]
    validation = [
        [step, round(float(value), 4), round(float(seconds), 1)]
        for step, value, seconds in zip(
            training.evaluated_at(settings), history.validation, history.at_validation, strict=True
        )
        if np.isfinite(value)
    ]
    found: dict[str, Any] = {
        "command": command,
        "settings": dataclasses.asdict(settings),
        "text": {
            "source": "pydoc_data.topics",
            "characters": len(text.text),
            "different": len(text.vocabulary),
            "sha256": text.sha256,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")},
        },
        "device": jax.devices()[0].platform,
        "cores": os.cpu_count(),
        "seconds": round(float(history.seconds), 1),
        "steps": done,
        "loss": losses,
        "validation": validation,
        "sample": written,
    }
    if curves is not None:
        found["autodiff"] = {
            "manual": [float(np.float32(loss)) for loss in curves.manual],
            "autodiff": [float(np.float32(loss)) for loss in curves.autodiff],
            "apart": curves.apart,
            "over_rounding": curves.ratio,
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
