"""What the specs of recurrent layers share: a Python loop over time, random settings, bad input.

The loops know of masks, states and the direction; a spec gives one step, for a batch by jnp, or
for one example on mpmath numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

from verify.specification import BadInput, Shape


def over_time(
    layer: Any, step: Callable[..., Any], x: jax.Array, first: Any, mask: Any = None
) -> jax.Array:
    """The first part of the state after every step, (m, T, n).

    Args:
        layer: says in which direction.
        step: step(state, x_t) -> state, with a tuple of arrays as state.
        x: (m, T, F).
        first: the state before the first step.
        mask: (m, T), or None.
    """
    state, outs = tuple(first), {}
    times = list(range(x.shape[1]))
    for t in reversed(times) if layer.reverse else times:
        new = step(state, x[:, t])
        if mask is not None:
            new = tuple(
                jnp.where(mask[:, t][:, None], *pair) for pair in zip(new, state, strict=True)
            )
        state = new
        outs[t] = state[0]
    return jnp.stack([outs[t] for t in times], axis=1)


def one_by_one(
    layer: Any, step: Callable[..., Any], x: np.ndarray, first: Any, mask: Any = None
) -> np.ndarray:
    """The same, one example after the other, on lists of numbers.

    Args:
        layer: says in which direction.
        step: step(state, x_t) -> state, with a tuple of lists as state.
        x: (m, T, F).
        first: first(example) -> the state before the first step.
        mask: (m, T), or None.
    """
    examples, times, _ = x.shape
    outs = []
    for example in range(examples):
        state, of_example = first(example), {}
        for t in sorted(range(times), reverse=layer.reverse):
            if mask is None or mask[example, t]:
                state = step(state, list(x[example, t]))
            of_example[t] = list(state[0])
        outs.append([of_example[t] for t in range(times)])
    return np.array(outs)


def zeros_or(states: tuple[Any, ...] | None, parts: int, n: int) -> Callable[[int], Any]:
    """first(example), for `one_by_one`: the rows of these states, or zeros."""
    if states is None:
        return lambda example: tuple([mp.mpf(0)] * n for _ in range(parts))
    return lambda example: tuple(list(each[example]) for each in states)


def times_vector(matrix: Any, vector: Any) -> list[Any]:
    """A matrix times a vector, one number at a time."""
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def logistic(z: Any) -> Any:
    """σ of one number."""
    return 1 / (1 + mp.exp(-z))


def settings(rng: np.random.Generator) -> dict[str, bool]:
    """Each of the settings at random, mostly not set."""
    return {name: bool(rng.random() < 0.3) for name in ("masked", "stateful", "reverse")}


def fits(shape: Shape) -> bool:
    """Whether it is the shape of sequences."""
    return len(shape) == 3 and 0 not in shape


def shrink(layer: Any) -> Iterator[Any]:
    """Settings left out, fewer units."""
    for name in ("masked", "stateful", "reverse"):
        if vars(layer)[name]:
            yield replace(layer, **{name: False})
    if vars(layer).get("features", 1) > 1:
        yield replace(layer, features=layer.features - 1)


def errors(kind: Any, params: Any, *settings: Any) -> tuple[BadInput, ...]:
    """What every recurrent layer says of bad input.

    Args:
        kind: the layer's class.
        params: of one that reads 4 features and has 3 units, or 4 if it has no such setting.
        *settings: the positional ones it is made with.
    """
    name, units = kind.__name__, settings[0] if settings else 4
    layer = kind(*settings)
    x = jnp.zeros((2, 5, 4))

    def call(layer: Any = layer, params: Any = params, x: Any = x, **taken: Any) -> Any:
        return lambda: layer.forward(params, x, **taken)

    masked, stateful = kind(*settings, masked=True), kind(*settings, stateful=True)
    shown = repr(layer)[:-1]
    return (
        BadInput(
            f"{name}: x of two axes",
            call(x=jnp.zeros((5, 4))),
            ValueError,
            (repr(layer), "x has shape (5, 4)", "expected (m, T, F)", "x[None]"),
        ),
        BadInput(
            f"{name}: no step",
            lambda: layer.init(jax.random.key(0), jnp.zeros((2, 0, 4))),
            ValueError,
            (repr(layer), "x has shape (2, 0, 4)", "at least one step"),
        ),
        BadInput(
            f"{name}: tokens",
            call(x=jnp.zeros((2, 5, 4), jnp.int32)),
            TypeError,
            (repr(layer), "floating-point", "int32", "embedding"),
        ),
        BadInput(
            f"{name}: params of another layer",
            call(params=tuple(params)),
            TypeError,
            (repr(layer), "expected its Params(", "network.init"),
        ),
        BadInput(
            f"{name}: a mask that it doesn't take",
            call(mask=jnp.ones((2, 5), bool)),
            TypeError,
            (repr(layer), "takes nothing", "leave out mask"),
        ),
        BadInput(
            f"{name}: no mask", call(masked), TypeError, (f"{shown}", "takes mask", "pass mask")
        ),
        BadInput(
            f"{name}: a mask of numbers",
            call(masked, mask=jnp.ones((2, 5))),
            TypeError,
            (repr(masked), "mask must be an array of booleans", "float32"),
        ),
        BadInput(
            f"{name}: a mask of examples",
            call(masked, mask=jnp.ones(2, bool)),
            ValueError,
            (repr(masked), "mask has shape (2,)", "expected (2, 5)", "lengths"),
        ),
        BadInput(
            f"{name}: a mask with time first",
            call(masked, mask=jnp.ones((5, 2), bool)),
            ValueError,
            (repr(masked), "mask has shape (5, 2)", "expected (2, 5)"),
        ),
        BadInput(
            f"{name}: no state",
            call(stateful),
            TypeError,
            (repr(stateful), "takes state", "pass state"),
        ),
        BadInput(
            f"{name}: a mask in the settings",
            lambda: kind(*settings, masked=jnp.ones((2, 5), bool)),
            TypeError,
            (f"{name}: masked must be True or False", "mask=..."),
        ),
        BadInput(
            f"{name}: a word for the direction",
            lambda: kind(*settings, reverse="yes"),
            TypeError,
            (f"{name}: reverse must be True or False", "'yes'"),
        ),
        *(
            (
                BadInput(
                    f"{name}: one state for all",
                    call(stateful, state=jnp.zeros((1, units))),
                    ValueError,
                    (repr(stateful), "state has shape (1,", f"expected (2, {units})", "not broad"),
                ),
                BadInput(
                    f"{name}: a state that is a list",
                    call(stateful, state=[0.0]),
                    TypeError,
                    (repr(stateful), "state must be a floating-point array", "list"),
                ),
            )
            if name != "LSTM"
            else ()
        ),
        *(
            (
                BadInput(
                    f"{name}: W of another width",
                    call(params=params._replace(W=jnp.zeros((params.W.shape[0], 7)))),
                    ValueError,
                    (repr(layer), "W has shape", f"expected ({params.W.shape[0]}, 4)"),
                ),
                BadInput(
                    f"{name}: W that is (n_in, n_out)",
                    call(params=params._replace(W=params.W.T)),
                    ValueError,
                    (repr(layer), "W has shape (4,", "W.T would fit"),
                ),
                BadInput(
                    f"{name}: one bias",
                    call(params=params._replace(b=jnp.zeros(1))),
                    ValueError,
                    (repr(layer), "b has shape (1,)", "not broadcast"),
                ),
                BadInput(
                    f"{name}: U of integers",
                    call(params=params._replace(U=jnp.zeros(params.U.shape, jnp.int32))),
                    TypeError,
                    (repr(layer), "U must be a floating-point array", "int32"),
                ),
                BadInput(
                    f"{name}: no units",
                    lambda: kind(0),
                    TypeError,
                    (f"{name}: features must be a positive int", "0"),
                ),
            )
            if settings
            else ()
        ),
    )
