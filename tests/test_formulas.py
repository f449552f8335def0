"""The notes' formulas, literally: against autodiff, and each in the notes' own shape."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from manual_bp import formulas
from verify import wrong_formulas
from verify.judges import bounds
from verify.rules import Rule, flat, generator

RNG = np.random.default_rng(3)
W = {1: RNG.normal(size=(4, 3)), 2: RNG.normal(size=(2, 4))}
B = {1: RNG.normal(size=(4, 1)), 2: RNG.normal(size=(2, 1))}
X, LABELS = RNG.normal(size=(3, 5)), np.eye(2)[:, RNG.integers(0, 2, 5)]
G = {1: jnp.tanh, 2: lambda z: jax.nn.softmax(z, axis=0)}
G_PRIME = {1: lambda z: 1 - jnp.tanh(z) ** 2}


def cost(W, B):
    hidden = jnp.tanh(W[1] @ X + B[1])
    log_p = jax.nn.log_softmax(W[2] @ hidden + B[2], axis=0)
    return -jnp.mean(jnp.sum(LABELS * log_p, axis=0))


def by_formulas(W, B):
    Z, A = formulas.forward_pass(W, B, X, G)
    _, dW, db = formulas.backward_pass(W, Z, A, LABELS, G_PRIME)
    return flat("d", (dW, db))


RULE = Rule(
    name="the notes",
    family="test",
    manual=by_formulas,
    autodiff=lambda W, B: flat("d", jax.grad(cost, argnums=(0, 1))(W, B)),
    draw=lambda rng, kind: (W, B),
)


def test_the_backward_pass_is_the_gradient():
    with jax.enable_x64(True):
        Z, A = formulas.forward_pass(W, B, X, G)
        dZ, dW, db = formulas.backward_pass(W, Z, A, LABELS, G_PRIME)
        expected_W, expected_b = jax.grad(cost, argnums=(0, 1))(W, B)
        for l in (1, 2):
            assert dW[l].shape == expected_W[l].shape
            assert db[l].shape == expected_b[l].shape
            assert dZ[l].shape == Z[l].shape
    verdict = bounds(RULE, RULE.draw(generator(0), "normal"))
    assert verdict.ok, verdict
    assert verdict.entries == sum(each.size for each in (*W.values(), *B.values()))


def test_a_step_down_the_gradient_lowers_the_cost():
    with jax.enable_x64(True):
        Z, A = formulas.forward_pass(W, B, X, G)
        _, dW, db = formulas.backward_pass(W, Z, A, LABELS, G_PRIME)
        step = formulas.gradient_descent_update
        lower_W = {l: step(W[l], dW[l], 0.1) for l in W}
        lower_b = {l: step(B[l], db[l], 0.1) for l in B}
        assert cost(lower_W, lower_b) < cost(W, B)


def test_each_formula_by_itself():
    """On small integers and 8 examples, where every sum and product is exact."""
    dZ, A_prev = RNG.integers(-9, 10, size=(2, 8)), RNG.integers(-9, 10, size=(3, 8))
    total = sum(np.outer(dZ[:, i], A_prev[:, i]) for i in range(8)) / 8
    np.testing.assert_array_equal(formulas.weight_gradient(dZ, A_prev), total)
    by_hand = [[sum(row) / 8] for row in dZ]
    np.testing.assert_array_equal(formulas.bias_gradient(dZ), by_hand)
    W_next, Z = RNG.integers(-9, 10, size=(2, 4)), RNG.integers(-9, 10, size=(4, 8))
    error = formulas.hidden_error(W_next, dZ, Z, lambda z: 2 + z)
    by_hand = [[W_next[:, j] @ dZ[:, i] * (2 + Z[j, i]) for i in range(8)] for j in range(4)]
    np.testing.assert_array_equal(error, by_hand)
    np.testing.assert_array_equal(formulas.output_error(X, X), np.zeros((3, 5)))


def test_formulas_are_the_notes_lines():
    """What a reader of the notes looks for stands there as it is written."""
    source = inspect.getsource(formulas)
    for line in (
        "return W @ A_prev + b",
        "return A_L - Y",
        "return W_next.T @ dZ_next * g_prime(Z)",
        "return 1 / m * (dZ @ A_prev.T)",
        "return 1 / m * dZ.sum(axis=1, keepdims=True)",
        "return value - rate * gradient",
    ):
        assert line in source


@pytest.mark.parametrize("name", wrong_formulas.MISTAKES)
def test_every_wrong_formula_is_caught(name):
    assert wrong_formulas.caught_by(name) is not None


def test_the_right_formulas_raise_no_alarm():
    for case in wrong_formulas.cases():
        verdict = wrong_formulas.judge(case)
        assert verdict.ok, verdict
        assert verdict.entries > 0
