"""manual_grads and its sisters as callers use them."""

from collections import OrderedDict
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_bp as mbp
from verify import judges

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])
NETWORK = mbp.mlp([4, 5, 3], hidden=mbp.tanh)
PARAMS = NETWORK.init(jax.random.key(0), jnp.asarray(X))


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- params as people write them ------------------------------------------------------------


class Layer(NamedTuple):
    b: Any
    W: Any


class Net(NamedTuple):
    first: Any
    second: Any


def test_any_structure_of_pairs_comes_back_in_the_same_structure():
    (W1, b1), (W2, b2) = PARAMS
    plain = ((W1, b1), (W2, b2))
    expected = mbp.manual_grads(plain, X, Y)
    (dW1, db1), (dW2, db2) = expected
    structures = [
        ([(W1, b1), (W2, b2)], [(dW1, db1), (dW2, db2)]),
        ([[W1, b1], [W2, b2]], [[dW1, db1], [dW2, db2]]),
        (({"b": b1, "W": W1}, {"W": W2, "b": b2}), ({"b": db1, "W": dW1}, {"W": dW2, "b": db2})),
        (
            [OrderedDict(b=b1, W=W1), {"W": W2, "b": b2}],
            [OrderedDict(b=db1, W=dW1), {"W": dW2, "b": db2}],
        ),
        ((Layer(b1, W1), Layer(b2, W2)), (Layer(db1, dW1), Layer(db2, dW2))),
        (Net((W1, b1), [W2, b2]), Net((dW1, db1), [dW2, db2])),
    ]
    for params, answer in structures:
        equal(mbp.manual_grads(params, X, Y), answer)


def test_a_bare_pair_is_one_layer():
    W, b = jnp.ones((3, 4)), jnp.zeros(3)
    dW, db = mbp.manual_grads((W, b), X, Y)
    ((expected_W, expected_b),) = mbp.manual_grads(((W, b),), X, Y)
    equal((dW, db), (expected_W, expected_b))
    equal(mbp.manual_grads(Layer(b, W), X, Y), Layer(db, dW))
    assert mbp.manual_grads([W, b], X, Y)[0].shape == (3, 4)


def test_pairs_are_read_for_a_given_network_of_dense_layers_too():
    pairs = [{"b": b, "W": W} for W, b in PARAMS]
    expected = mbp.manual_grads(PARAMS, X, Y, network=NETWORK)
    found = mbp.manual_grads(pairs, X, Y, network=NETWORK)
    equal(found, [{"b": b, "W": W} for W, b in expected])


def test_without_a_network_hidden_layers_are_relu():
    relu = mbp.mlp([4, 5, 3])
    equal(
        mbp.manual_grads(PARAMS, X, Y),
        mbp.manual_grads(PARAMS, X, Y, network=relu),
    )


def test_numpy_float64_is_welcome_and_params_keep_their_dtype():
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), PARAMS)
    found = mbp.manual_grads(params, X.astype(np.float64), Y.astype(np.int64), network=NETWORK)
    equal(found, mbp.manual_grads(PARAMS, X, Y, network=NETWORK))


# --- one sweep, many faces ------------------------------------------------------------------


def test_the_others_are_fields_of_manual_pass():
    step = mbp.manual_pass(PARAMS, X, Y, network=NETWORK)
    loss, grads = mbp.manual_value_and_grads(PARAMS, X, Y, network=NETWORK)
    equal(grads, step.grads)
    np.testing.assert_array_equal(loss, step.loss)
    equal(mbp.manual_grads(PARAMS, X, Y, network=NETWORK), step.grads)
    np.testing.assert_array_equal(mbp.predict(PARAMS, X, network=NETWORK), step.prediction)
    assert step.observed == ((), ())


def test_any_network_as_a_function_of_three_arguments():
    grads = partial(mbp.manual_grads, network=NETWORK, loss=mbp.SquaredError())
    assert grads(PARAMS, X, jax.nn.one_hot(Y, 3))[0].W.shape == (5, 4)


def test_intermediates_are_named_as_in_the_notes():
    steps = mbp.intermediates(PARAMS, X, Y, network=NETWORK)
    assert list(steps) == [
        *("A0", "Z1", "A1", "dA1", "dZ1", "dW1", "db1"),
        *("Z2", "A2", "dZ2", "dW2", "db2", "dA0"),
    ]
    np.testing.assert_array_equal(steps["A0"], X)
    chex.assert_trees_all_equal_shapes(steps["dZ1"], steps["Z1"])

    def outputs(name, g, params, x, y):
        return g(mbp.intermediates(params, x, y, network=NETWORK)[name])

    verdict = judges.same(
        partial(outputs, "A2", lambda a: a), partial(outputs, "Z2", jax.nn.softmax), PARAMS, X, Y
    )
    assert verdict.ok, verdict


def test_ones_as_weights_give_the_notes_error_of_each_example():
    def errors(params, x, y, weights=None):
        steps = mbp.intermediates(params, x, y, network=NETWORK, weights=weights)
        return steps["dZ1"], steps["dZ2"]

    def together(params, x, y):
        return errors(params, x, y, jnp.ones(6))

    def alone(params, x, y):
        each = [errors(params, x[i : i + 1], y[i : i + 1]) for i in range(6)]
        return tuple(jnp.concatenate(column) for column in zip(*each, strict=True))

    verdict = judges.same(together, alone, PARAMS, X, Y)
    assert verdict.ok, verdict


def test_a_weight_of_zero_contributes_exactly_nothing_whatever_is_there():
    weights = np.array([1, 2, 0, 1, 1, 0], np.float32)
    expected = mbp.manual_value_and_grads(PARAMS, X, Y, network=NETWORK, weights=weights)
    for spoilt in (np.nan, np.inf, -np.inf, 1e30):
        x = X.copy()
        x[2], x[5, 1] = spoilt, spoilt
        found = mbp.manual_value_and_grads(PARAMS, x, Y, network=NETWORK, weights=weights)
        equal(found, expected)
    one_hot = np.eye(3, dtype=np.float32)[Y]
    spoilt = one_hot.copy()
    spoilt[2], spoilt[5] = np.nan, np.inf
    equal(
        mbp.manual_grads(PARAMS, X, spoilt, network=NETWORK, weights=weights),
        mbp.manual_grads(PARAMS, X, one_hot, network=NETWORK, weights=weights),
    )


def test_sequences_are_weighted_prediction_by_prediction():
    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    y = np.array([[0, 1, 2], [2, -1, -1]])
    loss = mbp.SoftmaxCrossEntropy(ignored_class=-1)
    mean = mbp.manual_grads(PARAMS, x, y, network=NETWORK, loss=loss)
    weights = np.where(y >= 0, np.float32(1 / 4), 0)
    equal(mbp.manual_grads(PARAMS, x, y, network=NETWORK, loss=loss, weights=weights), mean)
    nothing = np.full((2, 3), -1)
    value, grads = mbp.manual_value_and_grads(PARAMS, x, nothing, network=NETWORK, loss=loss)
    assert value == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_keeps_dtypes_and_sums_in_float32(dtype):
    params, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (PARAMS, X))
    step = mbp.manual_pass(params, x, Y, network=NETWORK)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(step.grads)} == {dtype}
    assert step.loss.dtype == jnp.float32
    many = 4096  # 4096 equal terms: a float16 sum would stop growing at 2048
    ones = jnp.ones((many, 1), dtype)
    dW, db = mbp.manual_grads(
        (jnp.zeros((1, 1), dtype), jnp.zeros(1, dtype)),
        ones,
        -ones,
        loss=mbp.SquaredError(),
        weights=jnp.ones(many),
    )
    assert dW == db == many


def test_mixed_dtypes_promote_and_each_gradient_has_its_parameters_dtype():
    params = jax.tree.map(lambda a: a.astype("bfloat16"), PARAMS)
    mixed = (params[0], PARAMS[1])
    grads = mbp.manual_grads(mixed, X, Y, network=NETWORK)
    chex.assert_trees_all_equal_dtypes(grads, mixed)


# --- jit, vmap, scan ------------------------------------------------------------------------


def test_equal_under_the_callers_jit_vmap_and_scan():
    expected = mbp.manual_grads(PARAMS, X, Y, network=NETWORK)
    closed = jax.jit(lambda p, x, y: mbp.manual_grads(p, x, y, network=NETWORK))
    equal(closed(PARAMS, X, Y), expected)
    static = jax.jit(
        lambda p, x, y, network: mbp.manual_grads(p, x, y, network=network), static_argnums=3
    )
    equal(static(PARAMS, X, Y, NETWORK), expected)

    # scan and vmap may sum in another order: small integers, whose sums are exact in any.
    params, x, y = jax.tree.map(lambda a: np.round(3 * a), (PARAMS, X[:4], X[:4, :3]))
    grads = partial(mbp.manual_grads, params, loss=mbp.SquaredError())
    batches = (jnp.stack([x, x[::-1]]), jnp.stack([y, 2 * y]))
    _, scanned = jax.lax.scan(lambda carry, batch: (carry, grads(*batch)), 0, batches)
    mapped = jax.vmap(grads)(*batches)
    for found in (scanned, mapped):
        for i, batch in enumerate(zip(*batches, strict=True)):
            equal(jax.tree.map(lambda a, i=i: a[i], found), grads(*batch))
            assert all((leaf[i] != 0).any() for leaf in jax.tree.leaves(found))
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), PARAMS)
    over_params = jax.vmap(lambda p: mbp.manual_grads(p, X, Y, network=NETWORK))(many)
    assert over_params[0].W.shape == (2, 5, 4)


def test_traced_anew_only_for_new_shapes_dtypes_network_or_loss():
    class Counted(type(NETWORK)):
        traces = 0

        def forward(self, params, x, **taken):
            Counted.traces += 1
            return super().forward(params, x, **taken)

    network = Counted(NETWORK.layers)

    def call(x=X, y=Y, params=PARAMS, network=network, **settings):
        mbp.manual_grads(params, x, y, network=network, **settings)

    def traces(*calls):
        before = Counted.traces
        for each in calls:
            each()
        return Counted.traces - before

    assert traces(call) > 0
    assert traces(call, lambda: call(2 * X), lambda: call(y=Y[::-1].copy())) == 0
    assert traces(lambda: call(network=Counted(NETWORK.layers))) == 0  # an equal network
    assert traces(lambda: call(params=jax.tree.map(jnp.zeros_like, PARAMS))) == 0
    assert traces(lambda: call(X[:3], Y[:3])) > 0
    assert traces(lambda: call(X.astype("float16"))) > 0
    assert traces(lambda: call(loss=mbp.SoftmaxCrossEntropy(0.1))) > 0
    assert traces(lambda: call(loss=mbp.SoftmaxCrossEntropy(0.1))) == 0


def test_chex_counts_one_trace_of_a_training_step():
    chex.clear_trace_counter()
    optimizer = optax.sgd(0.1)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, x, y):
        loss, grads = mbp.manual_value_and_grads(params, x, y, network=NETWORK)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state, losses = PARAMS, optimizer.init(PARAMS), []
    for _ in range(20):
        params, state, loss = step(params, state, X, Y)
        losses.append(float(loss))
    assert losses[-1] < losses[0]


# --- networks -------------------------------------------------------------------------------


def test_weights_are_drawn_after_the_activation():
    x = jnp.ones((2, 400))
    cases = {
        mbp.relu: 2 / 400,
        mbp.gelu: 2 / 400,
        mbp.tanh: 2 / (400 + 300),
        mbp.identity: 1 / 400,
    }
    for activation, variance in cases.items():
        params = mbp.Dense(300, activation).init(jax.random.key(1), x)
        # The variance of 120,000 samples, to six of its standard errors: less than one key in
        # a hundred million is further off.
        squares = np.square(params.W, dtype=float)
        assert abs(squares.mean() - variance) < 6 * squares.std() / np.sqrt(squares.size)
        assert (params.b == 0).all()


def test_init_gives_every_layer_a_key_of_its_own():
    params = mbp.mlp([7, 7, 7]).init(jax.random.key(0), jnp.ones((1, 7)))
    assert not (params[0].W == params[1].W).any()
    assert params[0].W.dtype == jnp.float32
    half = mbp.mlp([7, 3]).init(jax.random.key(0), jnp.ones((1, 7), jnp.bfloat16))
    assert half[0].W.dtype == jnp.bfloat16


def test_importing_leaves_jax_configuration_alone():
    import subprocess
    import sys

    code = (
        "import jax; before = dict(jax.config.values); import manual_bp;"
        "assert before == dict(jax.config.values)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
