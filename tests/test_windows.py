"""Primitives of windows and running reductions, in every arithmetic, against jax.lax."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from verify.arithmetic.error_bound import Bounded, Doubtful, ErrorBound
from verify.arithmetic.multiprecision import Multiprecision
from verify.arithmetic.numpy import Float64
from verify.arithmetic.rational import Rational
from verify.interpreter import evaluate, trace
from verify.judges import BOUNDS

ARITHMETICS = (Float64(), Rational(), Multiprecision(20), ErrorBound())


def equal_everywhere(function, *args):
    """Every arithmetic gives what JAX gives, on small integers: to the last bit, and bound 0."""
    program = trace(lambda *each: {"out": function(*each)}, *args)
    with jax.enable_x64(True):
        expected = np.asarray(function(*map(jnp.asarray, args)))
    for arithmetic in ARITHMETICS:
        found = program.run(args, arithmetic)["out"]
        lowered = arithmetic.lower(found)
        assert lowered.shape == expected.shape, arithmetic.name
        assert np.array_equal(lowered, expected), (arithmetic.name, lowered, expected)
        if isinstance(found, Bounded):
            assert not found.bound.any()
        assert not isinstance(found, Doubtful)


def integers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-3, 4, size=shape).astype(np.float64)


WINDOWS = [
    (sides, strides, padding, base, window)
    for sides, strides, padding, base, window in itertools.product(
        [(2, 3), (1, 1), (3, 2)],
        [(1, 1), (2, 3)],
        [((0, 0), (0, 0)), ((1, 0), (1, 2))],
        [(1, 1), (2, 1)],
        [(1, 1), (1, 2)],
    )
]


@pytest.mark.parametrize("kind", ["sum", "max", "min"])
def test_reduce_window(kind):
    start, reduce = {
        "sum": (0.0, lax.add),
        "max": (-np.inf, lax.max),
        "min": (np.inf, lax.min),
    }[kind]
    for sides, strides, padding, base, window in WINDOWS:

        def pool(x, s=sides, t=strides, p=padding, b=base, w=window):
            return lax.reduce_window(x, start, reduce, s, t, p, b, w)

        equal_everywhere(pool, integers(5, 6))


def test_select_and_scatter_add_with_ties():
    for sides, strides, padding, _, _ in WINDOWS:
        for reduce, start in ((lax.max, -np.inf), (lax.min, np.inf)):

            def pool(x, s=sides, t=strides, p=padding, r=reduce, i=start):
                return lax.reduce_window(x, i, r, s, t, p)

            x = integers(5, 6)
            dout = integers(*pool(x).shape, seed=1)
            equal_everywhere(lambda x, d, pool=pool: jax.vjp(pool, x)[1](d)[0], x, dout)


RUNNING = {
    "cumsum": lax.cumsum,
    "cumprod": lax.cumprod,
    "cummax": lax.cummax,
    "cummin": lax.cummin,
    "reduce_prod": lambda x, axis, reverse: jnp.prod(x, axis),
    "argmax": lambda x, axis, reverse: jnp.argmax(x, axis) * 1.0,
    "argmin": lambda x, axis, reverse: jnp.argmin(x, axis) * 1.0,
    "sort": lambda x, axis, reverse: jnp.sort(x, axis),
}


@pytest.mark.parametrize("name", RUNNING)
def test_running_reductions(name):
    for axis, reverse in itertools.product((0, 1), (False, True)):
        x = integers(4, 3)
        # An argmax of a tie is the first; bounds of 0 leave no doubt.
        equal_everywhere(lambda x, f=RUNNING[name], a=axis, r=reverse: f(x, a, reverse=r), x)


def test_sort_carries_what_goes_with_the_key():
    key = np.array([[2.0, -1.0, 2.0, 0.0]])
    equal_everywhere(lambda k, v: lax.sort((k, v), num_keys=1)[1], key, integers(1, 4))


def bounded(function, value, bound, *others):
    program = trace(lambda *each: {"out": function(*each)}, value, *others)
    lifted = [Bounded(value, bound), *(BOUNDS.lift(each) for each in others)]
    return evaluate(program.jaxpr, lifted, BOUNDS)[0]


def test_an_error_whose_place_is_in_doubt_is_bounded_over_both():
    value, bound = np.array([1.0, 1.0 + 1e-12, 5.0, 2.0]), np.array([1e-11, 1e-11, 0.0, 0.0])

    def error(x, d):
        return jax.vjp(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID"), x)[
            1
        ](d)[0]

    found = bounded(error, value, bound, np.array([3.0, 4.0]))
    assert found.value.tolist() == [0, 3, 4, 0]
    # Either of the first two may have it; the second window is sure.
    assert found.bound.tolist() == [3, 3, 0, 0]


def test_a_place_in_doubt_is_marked():
    found = bounded(lambda x: jnp.argmax(x), np.array([1.0, 1.0, 0.0]), np.full(3, 1e-15))
    assert isinstance(found, Doubtful)
    assert found.doubt.all()
    sure = bounded(lambda x: jnp.argmax(x), np.array([1.0, 2.0, 0.0]), np.full(3, 1e-15))
    assert sure == 1


def test_an_order_in_doubt_stops_what_depends_on_it():
    key, values = np.array([1.0, 1.0, 0.0]), np.arange(3.0)
    with pytest.raises(ArithmeticError, match="order"):
        bounded(lambda k, v: lax.sort((k, v), num_keys=1)[1], key, np.full(3, 1e-15), values)


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "reduce_prod", "window_sum"])
def test_bounds_hold_what_rounding_and_the_inputs_bounds_do(name):
    function = {
        **RUNNING,
        "window_sum": lambda x, axis, reverse: lax.reduce_window(
            x, 0.0, lax.add, (3, 2), (1, 1), "SAME"
        ),
    }[name]
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(6, 5))
    apart = 1e-9 * rng.normal(size=exact.shape)
    found = bounded(lambda x: function(x, 0, reverse=False), exact + apart, np.abs(apart) * 1.01)
    program = trace(lambda x: {"out": function(x, 0, reverse=False)}, exact)
    true = program.run((exact,), Multiprecision(40))["out"]
    assert (np.abs(found.value - true) <= found.bound).all()
    # And it isn't much wider: the inputs' bounds are far above rounding here.
    sizes = np.abs(exact + apart)
    wide, narrow = (
        np.asarray(program.run((each,), Float64())["out"])
        for each in (sizes + np.abs(apart), sizes)
    )
    assert (found.bound <= 2 * (wide - narrow)).all()
