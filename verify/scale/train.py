"""A training that runs unchanged on one device, on several, and in several processes.

Every process runs this same program, step by step in time with the others:

    join          the processes find each other; each sees its own devices and those of the others
    start         each draws the same parameters from the same key, and keeps its devices' parts
    batch_at      each reads its own rows of the batch; together they are one array
    compiled_step each calls the same compiled step on that array: J is the mean over all rows, and
                  XLA adds what must cross from device to device, from the placements alone
    train         each knows the loss, of which process 0 alone tells; together they write one
                  checkpoint, each its own part

No line of the step speaks of devices. What makes it parallel are the placements of its arguments:
rows along the mesh's axis "data", parameters as `verify.scale.meshes` says, and adam's moments as
their parameters. The sum over the batch is therefore the sum over all devices, in another order:
losses are those of one device but for rounding. A run that was killed goes on from its last
checkpoint, and in the same layout to the same losses, bit by bit: nothing depends on the time, on
the process, or on a state beyond the checkpoint, and the batch follows from the step's number.

To make it a job of your own, change `Settings`, `batch_at` and the network; the rest stays.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import manual_bp as mbp
from manual_bp.layer import Layer
from verify.scale import meshes
from verify.text import training
from verify.text.checkpoints import Checkpoints
from verify.text.corpus import Corpus


@dataclass(frozen=True)
class Settings(training.Settings):
    """All that the losses depend on, but for rounding: not on what devices they are computed."""

    dtype: str = "float32"
    """Of parameters; float64 to see that layouts agree to 16 digits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model != "gpt":
            raise ValueError(f"model must be 'gpt', got {self.model!r}.")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}.")


TASK = Settings(
    "gpt", steps=200, batch=16, context=64, width=64, depth=2, heads=4, rate=2e-3, save_every=50
)
"""What the command trains unless told otherwise: seconds on one device."""


def join(coordinator: str | None, process: int, processes: int, devices: int | None) -> None:
    """Become one of several processes, or stay alone; before anything else is asked of JAX.

    Args:
        coordinator: host:port where process 0 listens and the others find it.
        process: this one's number.
        processes: how many there are.
        devices: of how many virtual CPU devices all of them together make use; None for the
            accelerators that JAX finds.
    """
    if devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices // processes)
    if processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of sums between CPUs
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=20,  # who is silent for so long has died: all others end
        )


def check_layout(settings: Settings, axes: dict[str, int], devices: int) -> None:
    """Raise unless the mesh has as many places as there are devices, and the rows can be shared."""
    written = ",".join(f"{name}={size}" for name, size in axes.items())
    places = math.prod(axes.values())
    if places != devices:
        raise ValueError(
            f"The mesh {written} is one of {places} devices, there being {devices}: their product "
            "must be the number of devices (on a CPU, --devices makes as many as you say)."
        )
    if settings.batch % axes["data"]:
        raise ValueError(
            f"A batch of {settings.batch} rows can't be shared evenly along data={axes['data']} of "
            f"the mesh {written}: give a batch that is a multiple of {axes['data']}."
        )


class Carry(NamedTuple):
    """What a step hands on to the next; on the way its arrays stay where they are."""

    params: Any
    optimizer: Any


class Progress(NamedTuple):
    """Where a training stands, all that a checkpoint holds: step is the number of the next one."""

    step: int
    carry: Carry
    losses: np.ndarray
    """(steps,), NaN for those to come."""
    seconds: np.ndarray
    """That it has taken so far, a scalar."""


class Training(NamedTuple):
    """What is trained on which devices."""

    settings: Settings
    network: Layer
    tokens: np.ndarray
    """The text, (characters,). Each process opens it, and reads what it needs."""
    rows: NamedSharding
    """Where the rows of a batch are: along the axis "data"."""
    carry: Carry
    """Shapes of parameters and of adam's moments, and where they are."""

    @property
    def placements(self) -> Carry:
        """Where parameters and adam's moments are."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.carry)


def prepare(settings: Settings, corpus: Corpus, mesh: Mesh, *, fully_sharded: bool) -> Training:
    """Say where everything will be, without making anything yet."""
    network = settings.network(len(corpus.vocabulary))
    shapes = jax.eval_shape(functools.partial(_begin, settings, network), jax.random.key(0))
    if fully_sharded:
        placed = meshes.fully_sharded(shapes.params, mesh, "data")
    elif "tensor" in mesh.shape:
        placed = meshes.tensor_parallel(shapes.params, mesh, "tensor")
    else:
        placed = meshes.replicated(shapes.params, mesh)
    whole = NamedSharding(mesh, P())  # a copy on each device
    moments = optax.tree_utils.tree_map_params(
        settings.optimizer(),
        lambda _, sharding: sharding,
        shapes.optimizer,
        placed,
        transform_non_params=lambda _: whole,
    )
    carry = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        Carry(placed, moments),
    )
    return Training(settings, network, corpus.training, meshes.batch(mesh), carry)


def _begin(settings: Settings, network: Layer, key: jax.Array) -> Carry:
    like = jax.ShapeDtypeStruct((settings.batch, settings.context), jnp.int32)
    params = jax.tree.map(lambda leaf: leaf.astype(settings.dtype), network.init(key, like))
    return Carry(params, settings.optimizer().init(params))


def outline(run: Training) -> Progress:
    """A training before its first step, with shapes for arrays: what a checkpoint is read into."""
    return Progress(0, run.carry, np.full(run.settings.steps, np.nan), np.zeros(()))


def start(run: Training) -> Progress:
    """A training before its first step.

    All processes use the same key. Each device draws its own part of the parameters, which are the
    same numbers however many devices share them.
    """
    begin = functools.partial(_begin, run.settings, run.network)
    drawn = jax.jit(begin, out_shardings=run.placements)(jax.random.key(run.settings.seed))
    return outline(run)._replace(carry=drawn)


def batch_at(run: Training, number: int) -> jax.Array:
    """The batch of this number, (batch, context + 1): windows anywhere in the text.

    Where they begin is drawn by all processes alike. Then each reads the windows of those rows
    that its own devices hold, and no others: the array is one, its parts are where they were read.
    """
    settings = run.settings
    shape = (settings.batch, settings.context + 1)
    rng = np.random.default_rng((settings.seed, number))
    starts = rng.integers(len(run.tokens) - settings.context, size=settings.batch)
    mine = starts[rows_here(run), None]
    windows = run.tokens[mine + np.arange(settings.context + 1)]
    return jax.make_array_from_process_local_data(run.rows, windows, shape)


def rows_here(run: Training) -> list[int]:
    """The rows of each batch that this process's devices hold."""
    rows = np.arange(run.settings.batch)
    held = run.rows.addressable_devices_indices_map(rows.shape)
    return sorted({int(row) for part in held.values() for row in rows[part]})


def compiled_step(run: Training) -> Callable[[Carry, jax.Array], tuple[Carry, jax.Array]]:
    """A step with hand-derived gradients: written for one device, placed on all."""
    optimizer = run.settings.optimizer()

    @functools.partial(
        jax.jit,
        donate_argnums=0,
        in_shardings=(run.placements, run.rows),
        out_shardings=(run.placements, NamedSharding(run.rows.mesh, P())),
    )
    def step(carry: Carry, tokens: jax.Array) -> tuple[Carry, jax.Array]:
        params, memory = carry
        x, y = tokens[:, :-1], tokens[:, 1:]
        loss, grads = mbp.manual_value_and_grads(params, x, y, network=run.network)
        updates, memory = optimizer.update(grads, memory, params)
        return Carry(optax.apply_updates(params, updates), memory), loss

    return step


def train(run: Training, saved: Checkpoints | None) -> Iterator[Progress]:
    """Go on from the last checkpoint, if there is one: yields where it begins, then each step.

    All processes do all of this alike; a checkpoint is one, to which each writes its devices' part.
    """
    settings, progress = run.settings, outline(run)
    if saved:
        progress = saved.last(progress)
    if progress.step == 0:
        progress = start(run)
    yield progress
    first, carry, losses, seconds = progress
    step, before = compiled_step(run), time.perf_counter() - float(seconds)
    for number in range(first, settings.steps):
        carry, loss = step(carry, batch_at(run, number))
        losses[number] = float(loss)  # the same on every device
        done = number + 1
        progress = Progress(done, carry, losses, np.array(time.perf_counter() - before))
        if saved and (done % settings.save_every == 0 or done == settings.steps):
            saved.save(progress)
        yield progress
