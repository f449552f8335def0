"""The real run: handwritten digits, trained with adam on hand-derived gradients beside jax.grad.

The data are the 1797 8x8 digits that ship with scikit-learn (Alpaydin & Kaynak 1998, UCI).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import manual_bp as mbp
from manual_bp.layer import Layer
from verify.curves import LIMIT, Curves, follow
from verify.report import Report


@dataclass(frozen=True)
class Task:
    """A network that learns the digits, by hand and, written out of jax.nn, by jax.grad."""

    name: str
    network: Layer
    logits: Callable[[Any, jax.Array], jax.Array]
    """The same network for jax.grad."""
    shape: tuple[int, ...]
    """Of one example."""
    rate: float
    """Of adam, at its largest."""
    steps: int
    compared: int
    """How many first steps are compared, loss by loss."""
    accuracy: float
    """Expected on the test set."""
    batch: int = 128

    def optimizer(self) -> optax.GradientTransformation:
        """Adam, its rate going down to 0 along a cosine."""
        return optax.adam(optax.cosine_decay_schedule(self.rate, self.steps))


def _mlp_logits(params: Any, x: jax.Array) -> jax.Array:
    (W1, b1), (W2, b2) = params
    return jax.nn.relu(x @ W1.T + b1) @ W2.T + b2


def _resnet_logits(params: Any, x: jax.Array) -> jax.Array:
    def conv(p: Any, v: jax.Array, stride: int = 1) -> jax.Array:
        axes = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            v, p.W, (stride, stride), "SAME", dimension_numbers=axes
        )

    def activated(p: Any, v: jax.Array) -> jax.Array:
        normalised = (v - v.mean((0, 1, 2))) / jnp.sqrt(v.var((0, 1, 2)) + 1e-5)
        return jax.nn.relu(p.scale * normalised + p.shift)

    def same(p: Any, v: jax.Array) -> jax.Array:
        ((norm1, _, conv1, norm2, _, conv2),) = p
        return v + conv(conv2, activated(norm2, conv(conv1, activated(norm1, v))))

    def widening(p: Any, v: jax.Array) -> jax.Array:
        norm1, _, (shortcut, (conv1, norm2, _, conv2)) = p
        h = activated(norm1, v)
        return conv(shortcut, h, 2) + conv(conv2, activated(norm2, conv(conv1, h, 2)))

    stem, block1, block2, block3, block4, norm, _, _, dense = params
    h = same(block2, same(block1, conv(stem, x)))
    h = same(block4, widening(block3, h))
    return activated(norm, h).mean((1, 2)) @ dense.W.T + dense.b


MLP = Task("mlp", mbp.mlp((64, 128, 10)), _mlp_logits, (64,), 2e-3, 1200, 100, 0.97)
RESNET = Task(
    "resnet",
    mbp.resnet(widths=(16, 32), blocks=2),
    _resnet_logits,
    (8, 8, 1),
    5e-3,
    160,
    20,
    0.98,
)


class Run(NamedTuple):
    """The loss curves, and the accuracy on the test set, by hand and by autodiff."""

    curves: Curves
    manual_accuracy: float
    autodiff_accuracy: float


def digits(dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    """x_train, x_test, y_train, y_test: pixels in [0, 1], classes 0 to 9, a quarter for testing."""
    x, y = load_digits(return_X_y=True)
    pixels: Any = (x / 16).astype(dtype)
    split = train_test_split(pixels, y, test_size=0.25, random_state=0)
    return tuple(map(np.asarray, split))


def train(task: Task, steps: int, dtype: Any, advance: Any = lambda: None) -> Run:
    """Train both ways from the same parameters on the same batches, and autodiff's neighbours.

    Args:
        task: what is trained.
        steps: how many; the neighbours do the first `task.compared` of them.
        dtype: of data and parameters; float64 needs jax.enable_x64.
        advance: called after each step.
    """
    x_train, x_test, y_train, y_test = digits(dtype)
    x_train, x_test = (x.reshape(-1, *task.shape) for x in (x_train, x_test))
    network, optimizer = task.network, task.optimizer()

    @jax.jit
    def manual_step(carry: Any, x: jax.Array, y: jax.Array) -> Any:
        params, state = carry
        loss, grads = mbp.manual_value_and_grads(params, x, y, network=network)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    def autodiff_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = task.logits(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def autodiff_step(carry: Any, x: jax.Array, y: jax.Array) -> Any:
        params, state = carry
        loss, grads = jax.value_and_grad(autodiff_loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    params = network.init(jax.random.key(0), jnp.asarray(x_train))
    rng = np.random.default_rng(0)
    order = np.concatenate(
        [rng.permutation(len(x_train)) for _ in range(steps * task.batch // 1000 + 1)]
    )
    cuts = (order[n * task.batch : (n + 1) * task.batch] for n in range(steps))
    curves, ours, theirs = follow(
        manual_step,
        autodiff_step,
        lambda params: (params, optimizer.init(params)),
        params,
        ((x_train[cut], y_train[cut]) for cut in cuts),
        compared=task.compared,
        rng=rng,
        advance=advance,
    )

    def accuracy(params: Any) -> float:
        taken = {}
        if network.inference().takes:  # statistics of the whole training set
            step = mbp.manual_pass(params, x_train, y_train, network=network)
            taken["statistics"] = step.observed
        guesses = mbp.predict(params, x_test, network=network, **taken).argmax(-1)
        return float((guesses == y_test).mean())

    done = steps == task.steps
    return Run(curves, *(accuracy(params) if done else np.nan for params, _ in (ours, theirs)))


def run(report: Report, *, quick: bool = False) -> None:
    """Train in float64 for the comparison, and in float32 to the end.

    Adam forgets the scale of a gradient but for its ε, so a wrong factor is the float64 run's to
    see: there 1.001 dW is as far off as ten million roundings.
    """
    for task in (MLP,) if quick else (MLP, RESNET):
        whole = task.compared if quick else task.steps
        for dtype, steps in ((np.float64, task.compared), (np.float32, whole)):
            _compare(report, task, steps, dtype)


def _compare(report: Report, task: Task, steps: int, dtype: Any) -> None:
    name = f"digits {task.name} {np.dtype(dtype).name}"
    what = f"loss curves of {task.compared} steps: how far apart over a rounding's reach"
    level = report.level(name, what, str(LIMIT))
    with report.working(name, steps) as advance, jax.enable_x64(dtype == np.float64):
        result = train(task, steps, dtype, advance)
    curves = result.curves
    level.judged(curves.ratio <= LIMIT, curves.ratio, f"loss curves differ by {curves.apart:.2g}")
    level.note(f"largest relative difference of the two loss curves: {curves.apart:.1e}")
    if steps == task.steps:
        ours, theirs = result.manual_accuracy, result.autodiff_accuracy
        expected = f"test accuracy {ours:.4f}, expected {task.accuracy}"
        level.judged(ours >= task.accuracy, failure=expected)
        level.note(
            f"test accuracy after {steps} steps: {ours:.4f} by hand, {theirs:.4f} by jax.grad; "
            f"training loss {curves.manual[-1]:.5f} and {curves.autodiff[-1]:.5f}"
        )
