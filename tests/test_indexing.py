"""gather and scatter in every arithmetic, against XLA: equal, on small integers."""

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
from verify.judges import BOUNDS, digits, rational, same
from verify.mutants import mutants

ARITHMETICS = (Float64(), Rational(), Multiprecision(20), ErrorBound())


def equal_everywhere(function, *args):
    """Every arithmetic gives what XLA gives, on small integers: to the last bit, and bound 0."""
    program = trace(lambda *each: {"out": function(*each)}, *args)
    with jax.enable_x64(True):
        expected = np.asarray(jax.jit(function)(*map(jnp.asarray, args)))
    for arithmetic in ARITHMETICS:
        found = program.run(args, arithmetic)["out"]
        lowered = arithmetic.lower(found)
        assert lowered.shape == expected.shape, arithmetic.name
        assert np.array_equal(lowered, expected, equal_nan=expected.dtype.kind == "f"), (
            arithmetic.name,
            lowered,
            expected,
        )
        if isinstance(found, Bounded):
            assert not found.bound.any()
        assert not isinstance(found, Doubtful)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).integers(-3, 4, size=shape).astype(np.float64)


TABLE = numbers(5, 3)
TOKENS = np.array([[0, 4], [4, -1], [2, 4]])  # 4 three times, and -1 the same row as 4
OUTSIDE = np.array([[0, 5], [7, -6], [2, -1]])
EACH = numbers(3, 2, 3, seed=1)

READ = {
    "table[tokens]": lambda t, k: t[k],
    "one axis of two": lambda t, k: t[:, k % 3],
    "two indices": lambda t, k: t[k, k % 3],
    "take, fill": lambda t, k: jnp.take(t, k, axis=0, mode="fill", fill_value=7.0),
    "take, NaN": lambda t, k: jnp.take(t, k, axis=0),
    "take, clip": lambda t, k: jnp.take(t, k, axis=0, mode="clip"),
    "take, wrap": lambda t, k: jnp.take(t, k, axis=1, mode="wrap"),
    "take along axis": lambda t, k: jnp.take_along_axis(t[:3], k % 3, axis=1),
    "take along axis, outside": lambda t, k: jnp.take_along_axis(t[:3], k, axis=1),
    "get": lambda t, k: t.at[k].get(mode="promise_in_bounds"),
    "of each example its own": lambda t, k: jax.vmap(lambda row, i: row[i])(t[:3], k % 3),
    "windows": lambda t, k: jax.vmap(lambda i: lax.dynamic_slice_in_dim(t, i, 2))(k[:, 0]),
    "of integers": lambda t, k: t.astype(int)[k] * 1.0,
    "of integers, fill": lambda t, k: jnp.take(t.astype(int), k, axis=0, mode="fill"),
    "of booleans": lambda t, k: jnp.take(t > 0, k, axis=0, mode="fill"),
}

WRITTEN = {
    "add": lambda t, k, e: t.at[k].add(e),
    "add, clip": lambda t, k, e: t.at[k].add(e, mode="clip"),
    "add, promise": lambda t, k, e: t.at[k].add(e, mode="promise_in_bounds"),
    "add to integers": lambda t, k, e: t.astype(int).at[k].add(e.astype(int)),
    "add to columns": lambda t, k, e: t.at[:, k % 3].add(e.sum(-1)),
    "add to elements": lambda t, k, e: t.at[k, k % 3].add(e[..., 0]),
    "set once": lambda t, k, e: t.at[k[::2, 0]].set(e[::2, 0]),
    "set once, clip": lambda t, k, e: t.at[k[::2, 0]].set(e[::2, 0], mode="clip"),
    "set, the last": lambda t, k, e: t.at[k].set(e),
    "set booleans": lambda t, k, e: (t > 0).at[k[:, 0]].set(e[:, 0] > 0),
    "to each example its own": lambda t, k, e: jax.vmap(lambda r, i, u: r.at[i].add(u))(
        t[:3], k, e[..., 0]
    ),
    "segments": lambda t, k, e: jax.ops.segment_sum(e[:, 0], k[:, 0], num_segments=5),
    "gradient of table[tokens]": lambda t, k, e: jax.vjp(lambda t: t[k], t)[1](e)[0],
    "gradient of windows": lambda t, k, e: jax.vjp(
        lambda t: jax.vmap(lambda i: lax.dynamic_slice_in_dim(t, i, 2))(k[:, 0]), t
    )[1](e)[0],
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read(name):
    for tokens in (TOKENS, OUTSIDE, TOKENS.astype(np.int32), TOKENS % 5):
        equal_everywhere(READ[name], TABLE, tokens)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written(name):
    for tokens in (TOKENS, OUTSIDE, TOKENS.astype(np.int32), TOKENS % 5):
        equal_everywhere(WRITTEN[name], TABLE, tokens, EACH)


# Operand (4, 5, 3), windows (2, 5, 1) or, with axis 0 batching, (1, 2, 3): all that an equation may
# say, not just what indexing by arrays makes of it.
NUMBERS = [
    ((4, 5, 3), (6, 2), (2, 5, 1), {"offset_dims": (0, 2), "collapsed_slice_dims": (2,)}, (2, 0)),
    ((4, 5, 3), (6, 2), (2, 5, 1), {"offset_dims": (1, 2), "collapsed_slice_dims": (2,)}, (0, 2)),
    ((4, 5, 3), (2, 3, 1), (1, 1, 1), {"offset_dims": (), "collapsed_slice_dims": (0, 1, 2)}, (1,)),
    ((4, 5, 3), (6, 1), (4, 2, 3), {"offset_dims": (1, 2, 3), "collapsed_slice_dims": ()}, (1,)),
    (
        (4, 5, 3),
        (6, 4, 1),
        (1, 2, 3),
        {
            "offset_dims": (0, 2),
            "collapsed_slice_dims": (),
            "operand_batching_dims": (0,),
            "start_indices_batching_dims": (1,),
        },
        (1,),
    ),
    (
        (4, 5, 3),
        (3, 4, 1),
        (1, 1, 1),
        {
            "offset_dims": (),
            "collapsed_slice_dims": (1,),
            "operand_batching_dims": (0, 2),
            "start_indices_batching_dims": (1, 0),
        },
        (1,),
    ),
]


@pytest.mark.parametrize("case", range(len(NUMBERS)))
def test_any_dimension_numbers(case):
    shape, rows, sizes, settings, indexed = NUMBERS[case]
    operand = numbers(*shape)
    to_read = lax.GatherDimensionNumbers(start_index_map=indexed, **settings)
    to_write = lax.ScatterDimensionNumbers(
        update_window_dims=to_read.offset_dims,
        inserted_window_dims=to_read.collapsed_slice_dims,
        scatter_dims_to_operand_dims=indexed,
        operand_batching_dims=to_read.operand_batching_dims,
        scatter_indices_batching_dims=to_read.start_indices_batching_dims,
    )
    indices = np.random.default_rng(case).integers(-1, 5, size=rows)
    for mode in ("clip", "fill", "promise_in_bounds"):

        def read(x, k, mode=mode):
            return lax.gather(x, k, to_read, sizes, mode=mode)

        def added(x, k, u, mode=mode):
            return lax.scatter_add(x, k, u, to_write, mode=mode)

        def put(x, k, u, mode=mode):
            return lax.scatter(x, k, u, to_write, mode=mode)

        equal_everywhere(read, operand, indices)
        updates = numbers(*jax.eval_shape(read, operand, indices).shape, seed=2)
        equal_everywhere(added, operand, indices, updates)
        equal_everywhere(put, operand, indices, updates)


@pytest.mark.parametrize("judge", [rational, digits])
def test_a_gradient_of_rows_is_a_product_with_indicators(judge):
    tokens, each = TOKENS % 5, np.random.default_rng(0).normal(size=(3, 2, 3))

    def added(each):
        return jnp.zeros((5, 3)).at[tokens].add(each)

    def contracted(each):
        return jnp.einsum("abv,abf->vf", (tokens[..., None] == jnp.arange(5)) * 1.0, each)

    assert same(added, contracted, each, judge=judge).ok
    assert same(added, contracted, each).ok
    assert not same(lambda each: jnp.zeros((5, 3)).at[tokens].set(each), contracted, each).ok


def lifted(function, values, bounds, *others):
    program = trace(lambda *each: {"out": function(*each)}, values, *others)
    first = Bounded(values, bounds)
    return evaluate(program.jaxpr, [first, *(BOUNDS.lift(each) for each in others)], BOUNDS)[0]


def test_a_sum_at_a_place_has_the_bound_of_a_sum():
    rng = np.random.default_rng(0)
    tokens = np.array([1, 1, 3, 1, 1, 1])
    exact = rng.normal(size=(6, 2))
    for apart in (np.zeros((6, 2)), 1e-9 * rng.normal(size=(6, 2))):
        found = lifted(
            lambda e, k: jnp.zeros((4, 2)).at[k].add(e), exact + apart, np.abs(apart), tokens
        )
        true = np.zeros((4, 2), object)
        np.add.at(true, tokens, Rational().lift(exact))
        assert (np.abs(Rational().lift(found.value) - true) <= found.bound).all()
        # One term is not rounded, none neither; five are, four times.
        assert np.array_equal(found.bound[[0, 2]], np.zeros((2, 2)))
        assert np.array_equal(found.bound[3], np.abs(apart)[2])
        allowed = np.abs(apart)[tokens == 1].sum(0)
        rounding = (np.abs(exact + apart) + np.abs(apart))[tokens == 1].sum(0) * 2.0**-51
        assert (found.bound[1] <= allowed + 1.1 * rounding).all()
        assert (found.bound[1] > allowed).all()


def test_bounds_are_read_and_written_with_their_values():
    values, bounds = np.arange(4.0), np.array([0.0, 1e-3, 0.0, 1e-5])
    read = lifted(
        lambda x, k: jnp.take(x, k, mode="fill", fill_value=1.0), values, bounds, jnp.array([3, 9])
    )
    assert (read.value.tolist(), read.bound.tolist()) == ([3, 1], [1e-5, 0])
    written = lifted(lambda x, k: jnp.zeros(3).at[k].set(x[:2]), values, bounds, jnp.array([2, 0]))
    assert (written.value.tolist(), written.bound.tolist()) == ([1, 0, 0], [1e-3, 0, 0])


def test_a_comparison_in_doubt_stays_so_where_it_is_moved():
    program = trace(lambda x, k: {"out": (x > 1)[k]}, np.ones(3), np.array([2, 0]))
    x = Bounded(np.array([1.0, 2.0, 3.0]), np.array([1e-9, 0.0, 0.0]))
    (found,) = evaluate(program.jaxpr, [x, np.array([2, 0])], BOUNDS)
    assert (found.value.tolist(), found.doubt.tolist()) == ([True, False], [False, True])


def test_a_place_in_doubt_is_not_read_or_written():
    x = Bounded(np.array([1.0, 1.0, 0.0]), np.full(3, 1e-9))
    for function in (
        lambda x, k: x.at[k].get(mode="clip", wrap_negative_indices=False),
        lambda x, k: x.at[k].add(1.0, wrap_negative_indices=False),
        lambda x, k: x.at[k].set(1.0, wrap_negative_indices=False),
    ):
        program = trace(lambda x, f=function: {"out": f(x, jnp.argmax(x)[None])}, np.ones(3))
        with pytest.raises(ArithmeticError, match="read or written depends"):
            evaluate(program.jaxpr, [x], BOUNDS)


def test_mutants_read_and_write_elsewhere():
    args = (TABLE, TOKENS % 5, EACH)
    functions = {
        "gather": lambda t, k, e: {"out": t.at[k].get(mode="promise_in_bounds") + e},
        "scatter": lambda t, k, e: {"out": t.at[k[::2, 0]].set(e[::2, 0])},
        "scatter-add": lambda t, k, e: {"out": t.at[k].add(e)},
    }
    for (name, function), arithmetic in itertools.product(functions.items(), ARITHMETICS):
        program = trace(function, *args)
        right = arithmetic.lower(program.run(args, arithmetic)["out"])
        kinds = {m.kind: m for m in mutants(program, args) if m.primitive == name}
        expected = {"indices off by one"} | ({"made a scatter"} if name == "scatter-add" else set())
        assert expected <= set(kinds)
        for kind in expected:
            found = arithmetic.lower(kinds[kind].run(program, args, arithmetic)["out"])
            assert not np.array_equal(found, right), (name, kind)
