"""The real run: handwritten digits, trained with adam on hand-derived gradients beside jax.grad.

The data are the 1797 8x8 digits that ship with scikit-learn (Alpaydin & Kaynak 1998, UCI).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import manual_bp as mbp
from verify.report import Report

SIZES = (64, 128, 10)
BATCH = 128
STEPS = 1200
COMPARED = 100
NEIGHBOURS = 3
"""Further runs of jax.grad, from parameters moved by one rounding: how far rounding leads."""


class Run(NamedTuple):
    """Losses step by step and the accuracy on the test set, by hand and by autodiff."""

    manual: np.ndarray
    autodiff: np.ndarray
    neighbours: np.ndarray
    """The first losses of autodiff from parameters moved by a rounding, a row for each run."""
    manual_accuracy: float
    autodiff_accuracy: float

    @property
    def apart(self) -> float:
        """The largest relative difference of the first losses by hand from autodiff's."""
        return self._from_autodiff(self.manual)

    @property
    def ratio(self) -> float:
        """The same over the largest difference that moving the parameters by a rounding makes."""
        return self.apart / max(map(self._from_autodiff, self.neighbours))

    def _from_autodiff(self, losses: np.ndarray) -> float:
        first = self.autodiff[:COMPARED]
        return float(np.max(np.abs(losses[:COMPARED] - first) / np.abs(first)))


def digits(dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    """x_train, x_test, y_train, y_test: pixels in [0, 1], classes 0 to 9, a quarter for testing."""
    x, y = load_digits(return_X_y=True)
    pixels: Any = (x / 16).astype(dtype)
    split = train_test_split(pixels, y, test_size=0.25, random_state=0)
    return tuple(map(np.asarray, split))


def autodiff_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The same network written out of jax.nn and optax."""
    (W1, b1), (W2, b2) = params
    hidden = jax.nn.relu(x @ W1.T + b1)
    logits = hidden @ W2.T + b2
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def neighbour(params: Any, rng: np.random.Generator) -> Any:
    """Parameters of which each is moved by one rounding, up or down at random."""

    def moved(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        ends = rng.choice(np.array([-np.inf, np.inf], leaf.dtype), leaf.shape)
        return jnp.asarray(np.nextafter(leaf, ends))

    return jax.tree.map(moved, params)


def train(steps: int, dtype: Any, advance: Any = lambda: None) -> Run:
    """Train both ways from the same parameters on the same batches, and autodiff's neighbours.

    Args:
        steps: how many; the neighbours do the first `COMPARED` of them.
        dtype: of data and parameters; float64 needs jax.enable_x64.
        advance: called after each step.
    """
    x_train, x_test, y_train, y_test = digits(dtype)
    network = mbp.mlp(SIZES)
    optimizer = optax.adam(2e-3)

    @jax.jit
    def manual_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        loss, grads = mbp.manual_value_and_grads(params, x, y, network=network)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    @jax.jit
    def autodiff_step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(autodiff_loss)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = network.init(jax.random.key(0), jnp.asarray(x_train))
    rng = np.random.default_rng(0)
    order = np.concatenate(
        [rng.permutation(len(x_train)) for _ in range(steps * BATCH // 1000 + 1)]
    )
    near = [neighbour(params, rng) for _ in range(NEIGHBOURS)]
    ways: list[list[Any]] = [
        [step, start, optimizer.init(start), []]
        for step, start in (
            (manual_step, params),
            (autodiff_step, params),
            *((autodiff_step, each) for each in near),
        )
    ]
    for number in range(steps):
        batch = order[number * BATCH : (number + 1) * BATCH]
        for way in ways if number < COMPARED else ways[:2]:
            step, params, state, losses = way
            way[1], way[2], loss = step(params, state, x_train[batch], y_train[batch])
            losses.append(float(loss))
        advance()
    accuracies = [
        float((mbp.predict(way[1], x_test, network=network).argmax(-1) == y_test).mean())
        for way in ways[:2]
    ]
    manual, autodiff, *neighbours = (np.array(way[3]) for way in ways)
    return Run(manual, autodiff, np.array(neighbours), *accuracies)


def run(report: Report, *, quick: bool = False) -> None:
    """Train in float64 for the comparison, and in float32 to the end.

    Both runs round differently and so drift apart, at a rate that is the network's own. So the
    yardstick is taken from the same training: jax.grad's run is repeated from parameters moved by
    one rounding each, and the run by hand may be no farther from it than twice the farthest of
    those, as in L5.

    Adam forgets the scale of a gradient but for its ε, so a wrong factor is the float64 run's to
    see: there 1.001 dW is as far off as ten million roundings.
    """
    for dtype, steps in ((np.float64, COMPARED), (np.float32, COMPARED if quick else STEPS)):
        name = np.dtype(dtype).name
        what = f"digits: loss curves of {COMPARED} steps, how far apart over a rounding's reach"
        level = report.level(f"digits {name}", what, "2")
        wide = jax.enable_x64(dtype == np.float64)
        with report.working(f"digits {name}", steps) as advance, wide:
            result = train(steps, dtype, advance)
        level.judged(result.ratio <= 2, result.ratio, f"loss curves differ by {result.apart:.2g}")
        level.note(f"largest relative difference of the two loss curves: {result.apart:.1e}")
        if steps == STEPS:
            ours, theirs = result.manual_accuracy, result.autodiff_accuracy
            level.judged(ours >= 0.97, failure=f"test accuracy {ours:.4f}, expected 0.97")
            level.note(
                f"test accuracy after {steps} steps: {ours:.4f} by hand, {theirs:.4f} by "
                f"jax.grad; training loss {result.manual[-1]:.5f} and {result.autodiff[-1]:.5f}"
            )
