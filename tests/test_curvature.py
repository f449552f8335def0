"""Diagonals of curvature, K-FAC factors and the optimiser made of them: beyond what rules draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_bp as mbp
from manual_bp.signals.kfac_optimizer import precondition
from verify import specs
from verify.judges import same
from verify.signals import curvature as definitions
from verify.training import digits

specs.layers()  # loaded before anything is traced: what they draw would be traced too
KEY = jax.random.key(0)
SOFTMAX = mbp.SoftmaxCrossEntropy()
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


def test_what_has_weight_0_contributes_nothing():
    network = mbp.mlp([2, 3, 3], hidden=mbp.tanh)
    params = network.init(KEY, X)
    spoilt = jnp.concatenate([X, jnp.array([[jnp.nan, jnp.inf]])])
    labels, weights = jnp.array([0, 2, -5]), jnp.array([0.5, 0.5, 0.0])
    for signal in (
        mbp.ggn_diagonal,
        mbp.empirical_fisher,
        mbp.kfac_factors,
        functools.partial(mbp.kfac_factors, fisher="empirical"),
    ):
        clean = signal(params, X, Y, network=network, weights=weights[:2])
        found = signal(params, spoilt, labels, network=network, weights=weights)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
            assert np.isfinite(ours).all()
            assert np.abs(ours - theirs).max() <= 2.0**-20 * np.abs(theirs).max()  # other kernels
        nothing = signal(params, X, Y, network=network, weights=jnp.zeros(2))
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(nothing))


def test_of_one_example_and_place_the_product_is_the_hessian():
    """Least squares: F = H, and of one example A ⊗ G is it, whatever the weight."""
    params, x, y = (jnp.ones((2, 2)), jnp.ones(2)), X[:1], jnp.zeros((1, 2))
    weights = jnp.array([2.0])
    settings = {"loss": mbp.SquaredError(), "weights": weights}

    def ours(x):
        factors = mbp.kfac_factors(params, x, y, **settings)
        return jnp.einsum("ij,op->oipj", factors.A, factors.G)

    def theirs(x):
        def total(joined):
            return (weights @ (x @ joined[:, :2].T + joined[:, 2] - y) ** 2).sum() / 2

        return jax.hessian(total)(jnp.ones((2, 3)))

    assert same(ours, theirs, x).ok


def test_signs_give_the_exact_factors_in_the_mean():
    """Of two columns the products of signs are 1 and -1 equally often: two keys are enough."""
    params, x, y = (jnp.ones((2, 2)), jnp.ones(2)), X[:1], jnp.zeros((1, 2))
    of = functools.partial(mbp.kfac_factors, params, x, y, loss=mbp.SquaredError())
    found = [of(fisher="sampled", fisher_key=jax.random.key(seed)).G for seed in range(20)]
    (alike,) = {1.0} & {float(G[0, 1]) for G in found}
    (apart,) = {-1.0} & {float(G[0, 1]) for G in found}
    assert alike + apart == 0 == of().G[0, 1]
    assert all((jnp.diagonal(G) == jnp.diagonal(of().G)).all() for G in found)


def test_layers_without_factors_hold_none_and_a_stack_has_steps_in_front():
    network = mbp.sequential(
        mbp.Embedding(5, 4), mbp.stack(mbp.skip(mbp.sequential(mbp.LayerNorm(), mbp.Dense(4))), 3)
    )
    x, y = jnp.array([[0, 1, 1]]), jnp.array([[1, 2, 0]])
    params = network.init(KEY, x)
    table, (((norm, dense),),) = mbp.kfac_factors(params, x, y, network=network)
    assert isinstance(table, mbp.TableFactors) and isinstance(dense, mbp.DenseFactors)
    assert table.A.tolist() == [1, 2, 0, 0, 0] and norm is None
    assert dense.A.shape == (3, 5, 5) and dense.G.shape == (3, 4, 4)
    optimizer = mbp.kfac(0.1, mbp.kfac_factors(params, x, y, network=network))
    grads = mbp.manual_grads(params, x, y, network=network)
    state = optimizer.init(params)

    @jax.jit
    def step(grads, state):
        factors = mbp.kfac_factors(params, x, y, network=network)
        return optimizer.update(grads, state, params, factors=factors)

    updates, state = step(grads, state)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


@pytest.mark.parametrize("wrap", [tuple, list, lambda pair: dict(zip("Wb", pair, strict=True))])
def test_the_direction_solves_the_two_systems(wrap):
    """tr A / dim A = tr G / dim G, so that π = 1 and √λ = 2 is added to both."""
    A, G = jnp.array([[2.0, 2.0], [2.0, 3.0]]), jnp.diag(jnp.array([3.0, 2.0]))
    U = jnp.array([[1.0, -2.0], [3.0, 4.0]])
    dW = (G + 2 * jnp.eye(2)) @ U @ (A + 2 * jnp.eye(2))
    grads = wrap((dW[:, :1], dW[:, 1]))
    found = precondition(mbp.DenseFactors(A, G), grads, damping=4.0)
    assert jax.tree.structure(found) == jax.tree.structure(grads)
    W, b = found.values() if isinstance(found, dict) else found
    back = (G + 2 * jnp.eye(2)) @ jnp.concatenate([W, b[:, None]], 1) @ (A + 2 * jnp.eye(2))
    # Higham (2002), theorem 10.4: residuals are as rounding of the entries
    assert np.abs(back - dW).max() <= 2.0**-18 * np.abs(dW).max()


@functools.cache
def loss_after(steps, optimizer, uses_factors):
    x, _, y, _ = map(jnp.asarray, digits())
    network = mbp.mlp([64, 16, 10], hidden=mbp.tanh)
    params = network.init(KEY, x)
    of = functools.partial(mbp.kfac_factors, x=x, y=y, network=network, fisher="exact")
    if uses_factors:
        optimizer = mbp.kfac(0.3, jax.eval_shape(of, params))

    @jax.jit
    def step(state, _):
        params, state = state
        loss, grads = mbp.manual_value_and_grads(params, x, y, network=network)
        more = {"factors": of(params)} if uses_factors else {}
        updates, state = optimizer.update(grads, state, params, **more)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[1][-1]


def test_kfac_makes_more_of_a_step_than_sgd_and_adam():
    ours = loss_after(30, None, True)
    for rate in (0.1, 0.3, 1.0):
        assert ours < loss_after(30, optax.sgd(rate, momentum=0.9), False)
    for rate in (3e-3, 1e-2, 3e-2, 1e-1):
        assert ours < loss_after(30, optax.adam(rate), False)


HEAD = mbp.LinearCrossEntropy(3)
TIED = KINDS["tied"][0]
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
    "batch norm, K-FAC": (
        lambda: mbp.kfac_factors(NORMED.init(KEY, X), X, Y, network=NORMED),
        r"BatchNorm\(\) mixes examples",
    ),
    "not convex": (
        lambda: mbp.ggn_diagonal(DENSE, X, jnp.ones((2, 3)), loss=mbp.Focal()),
        r"Focal\(\) isn't convex",
    ),
    "a loss with parameters": (
        lambda: mbp.kfac_factors((DENSE, DENSE), X, Y, loss=HEAD),
        r"Write the last layer as Dense\(classes\)",
    ),
    "tied": (
        lambda: mbp.kfac_factors(TIED.init(KEY, X), X, X, network=TIED),
        "used in several places: they have no one pair",
    ),
    "no such Fisher": (
        lambda: mbp.kfac_factors(DENSE, X, Y, fisher="true"),
        "fisher must be one of 'exact', 'sampled', 'empirical', got 'true'",
    ),
    "no key": (
        lambda: mbp.kfac_factors(DENSE, X, Y, fisher="sampled"),
        "pass fisher_key=jax.random.key",
    ),
    "a key too many": (
        lambda: mbp.kfac_factors(DENSE, X, Y, fisher_key=KEY),
        "leave out fisher_key",
    ),
    "no factors": (
        lambda: mbp.kfac(0.1, mbp.kfac_factors(DENSE, X, Y)).update(
            DENSE, mbp.kfac(0.1, mbp.kfac_factors(DENSE, X, Y)).init(DENSE)
        ),
        r"update needs factors=kfac_factors\(...\)",
    ),
    "no damping": (lambda: mbp.kfac(0.1, (), damping=0.0), "damping must be a number above 0"),
    "decay of 1": (lambda: mbp.kfac(0.1, (), decay=1.0), "decay must be at least 0 and below 1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_to_do(case):
    call, message = ERRORS[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
