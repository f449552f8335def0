"""Diagonals of curvature beyond what rules draw, and weights of 0 in all signals of curvature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from verify import specs
from verify.judges import same
from verify.signals import curvature as definitions

specs.layers()  # loaded before anything is traced: what they draw would be traced too
KEY = jax.random.key(0)
NORMED = mbp.sequential(mbp.Dense(2), mbp.BatchNorm(), mbp.Dense(3))
X = jnp.array([[1.0, -0.5], [0.5, 2.0]])
Y = jnp.array([0, 2])


def inputs_of(shape):
    return jax.random.normal(jax.random.key(1), shape)


KINDS = {
    "tied": (mbp.tied(mbp.sequential(*[mbp.Dense(2, mbp.tanh)] * 2), ((0,), (1,))), (2, 2)),
    "stack": (mbp.stack(mbp.skip(mbp.Dense(2, mbp.tanh)), 2), (2, 2)),
    "tied stack": (
        mbp.tied(mbp.sequential(*[mbp.stack(mbp.Dense(2, mbp.tanh), 2)] * 2), ((0,), (1,))),
        (2, 2),
    ),
    "norm": (mbp.sequential(mbp.Dense(2), mbp.LayerNorm(), mbp.Dense(2)), (2, 2)),
    "conv": (mbp.sequential(mbp.Conv(2, 2), mbp.Flatten(), mbp.Dense(2)), (2, 2, 1)),
    "lstm": (mbp.sequential(mbp.LSTM(2), mbp.LastStep(), mbp.Dense(2)), (2, 2, 2)),
    "attention": (mbp.MultiHeadAttention(1), (1, 2, 2)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of", ["ggn_diagonal", "empirical_fisher"])
def test_the_diagonals_are_their_definition_for_every_kind_of_network(kind, of):
    network, shape = KINDS[kind]
    x = inputs_of(shape)
    params = network.init(KEY, x)
    target = inputs_of(network.forward(params, x)[0].shape)
    settings = {"network": network, "loss": mbp.LogCosh()}
    assert same(
        lambda *given: getattr(mbp, of)(*given, **settings),
        lambda *given: getattr(definitions, of)(*given, **settings),
        params,
        x,
        target,
    ).ok


HEADS = {
    "a W of its own": (mbp.Dense(2, mbp.tanh), mbp.LinearCrossEntropy(3, bias=True), X, Y),
    "a table that it shares": (
        mbp.sequential(mbp.Embedding(3, 2), mbp.Dense(2, mbp.tanh)),
        mbp.LinearCrossEntropy(3, shared=(0, "W")),
        jnp.array([[0, 1], [2, 2]]),
        jnp.array([[1, 2], [2, 0]]),
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_fisher_of_a_loss_that_holds_the_last_layer_is_its_definition(head):
    network, loss, x, y = HEADS[head]
    of_network = network.init(KEY, x)
    prediction, _ = network.forward(of_network, x)
    params = (of_network, loss.init(KEY, prediction)) if loss.parametric else of_network
    weights = jnp.linspace(0.25, 1.0, y.size).reshape(y.shape)
    settings = {"network": network, "loss": loss}
    assert same(
        lambda *given: mbp.empirical_fisher(*given[:3], weights=given[3], **settings),
        lambda *given: definitions.empirical_fisher(*given[:3], weights=given[3], **settings),
        params,
        x,
        y,
        weights,
    ).ok


FITTED = mbp.LogCosh(), [[0.5, -0.5], [5.0, 2.5]]  # Y = A, where h is 1; NaN where Y is
APART = mbp.SquaredError(), [[0.5, 2.0], [-1.0, 0.0]]


@pytest.mark.parametrize(
    ("signal", "loss", "y"),
    [
        (mbp.ggn_diagonal, *FITTED),
        (mbp.empirical_fisher, *APART),
        (mbp.kfac_factors, *FITTED),
        (functools.partial(mbp.kfac_factors, fisher="empirical"), *APART),
    ],
)
def test_what_has_weight_0_contributes_nothing(signal, loss, y):
    """All numbers are few bits long and all roots whole, so that nothing is rounded."""
    params = ((jnp.array([[1.0, 2.0], [-1.0, 1.0]]), jnp.array([0.5, 1.0])),)
    run = functools.partial(signal, params, loss=loss)
    clean = run(X, jnp.array(y), weights=jnp.ones(2))
    spoilt = (
        jnp.concatenate([X, jnp.array([[jnp.nan, jnp.inf]])]),
        jnp.array([*y, [-jnp.inf, jnp.nan]]),
    )
    found = run(*spoilt, weights=jnp.array([1.0, 1.0, 0.0]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(clean))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, clean)))
    nothing = run(*spoilt, weights=jnp.zeros(3))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(nothing))


DENSE = (jnp.ones((3, 2)), jnp.ones(3))
ERRORS = {
    "batch norm, GGN": (
        lambda: mbp.ggn_diagonal(NORMED.init(KEY, X), X, Y, network=NORMED),
        r"BatchNorm\(\) mixes examples",
    ),
    "batch norm, Fisher": (
        lambda: mbp.empirical_fisher(NORMED.init(KEY, X), X, Y, network=NORMED),
        r"BatchNorm\(\) mixes examples",
    ),
    "not convex": (
        lambda: mbp.ggn_diagonal(DENSE, X, jnp.ones((2, 3)), loss=mbp.Focal()),
        r"Focal\(\) isn't convex",
    ),
    "a loss that holds the last layer": (
        lambda: mbp.ggn_diagonal((DENSE, DENSE), X, Y, loss=mbp.LinearCrossEntropy(3)),
        r"Write the same as Dense\(classes\) at the end of the network",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_to_do(case):
    call, message = ERRORS[case]
    with pytest.raises(TypeError, match=message):
        call()
