"""K-FAC factors and the optimiser made of them: beyond what rules draw.

Numbers are chosen so that nothing is rounded, roots and triangular factors neither: results are
equal, whatever the order of the sums.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_bp as mbp
from manual_bp.layer import Layer
from manual_bp.signals.kfac_optimizer import precondition
from verify import specs
from verify.judges import same
from verify.training import digits

specs.layers()  # loaded before anything is traced: what they draw would be traced too
KEY = jax.random.key(0)
X = jnp.array([[1.0, -0.5], [0.5, 2.0]])
Y = jnp.array([0, 2])


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


def integers(seed, *shape):
    """Whole numbers of two bits and a sign."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_a_dense_layer_of_its_windows_in_each_group(groups):
    layer = mbp.Conv(4, (2, 1), padding="VALID", groups=groups)
    x, y = integers(0, 2, 3, 2, 4), integers(1, 2, 2, 2, 4)
    kernel, b = integers(2, 2, 1, 4 // groups, 4), integers(3, 4)
    params = jax.tree.unflatten(jax.tree.structure(layer.init(KEY, x)), [kernel, b])
    settings = {"loss": mbp.SquaredError(), "fisher": "empirical"}
    found = mbp.kfac_factors(params, x, y, network=layer, weights=jnp.ones((2, 2, 2)), **settings)
    windows = np.stack([x[:, :-1], x[:, 1:]], 3).reshape(
        2, 4, 2, groups, -1
    )  # (m, S, K, groups, c)
    for group in range(groups):
        here = np.arange(4).reshape(groups, -1)[group]
        dense = mbp.kfac_factors(
            (kernel[..., here].reshape(-1, len(here)).T, b[here]),
            windows[:, :, :, group].reshape(2, 4, -1),
            y[..., here].reshape(2, 4, -1),
            weights=jnp.ones((2, 4)),
            **settings,
        )
        assert np.array_equal(found.A[group], dense.A)
        assert np.array_equal(found.G[group], dense.G)


def lower(seed, size, root):
    """A triangle with these numbers on its diagonal and ±½ below it."""
    signs = np.random.default_rng(seed).choice([-0.5, 0.5], (size, size))
    return np.tril(signs, -1) + root * np.eye(size)


class System:
    """(G + √λ/π I) U (A + π √λ I) = dW with λ = 4 and π = 2, so that 4 is added to A, 1 to G.

    The triangular factors of the sums are chosen, with powers of 2 on their diagonals. Of five
    inputs and two outputs, tr A / dim A = 12.5 and tr G / dim G = 3.125, and so π is 2.
    """

    def __init__(self, seed):
        damped_A, damped_G = (L @ L.T for L in (lower(seed, 5, 4), lower(seed + 1, 2, 2)))
        self.A, self.G = damped_A - 4 * np.eye(5), damped_G - np.eye(2)
        self.U = integers(seed, 2, 5)
        self.dW = damped_G @ self.U @ damped_A


@pytest.mark.parametrize("wrap", [tuple, list, lambda pair: dict(zip("Wb", pair, strict=True))])
def test_the_direction_of_a_dense_layer_solves_its_system(wrap):
    system = System(0)
    grads = wrap((system.dW[:, :4], system.dW[:, 4]))
    factors = jax.tree.map(jnp.asarray, mbp.DenseFactors(system.A, system.G))
    found = precondition(factors, grads, damping=4.0)
    assert jax.tree.structure(found) == jax.tree.structure(grads)
    W, b = jax.tree.leaves(found)
    assert np.array_equal(np.column_stack([W, b]), system.U)


def test_the_direction_of_a_convolution_solves_the_system_of_each_group():
    """Four inputs of a window are two places with two channels: (K, c, G o) in the kernel."""
    systems = System(0), System(2)

    def joined(name):
        return jnp.stack([jnp.asarray(getattr(each, name)) for each in systems])

    def as_params(of_groups):
        kernels = [each[:, :4].T.reshape(2, 1, 2, 2) for each in of_groups]
        return np.concatenate(kernels, -1), np.concatenate([each[:, 4] for each in of_groups])

    factors = mbp.ConvFactors(joined("A"), joined("G"))
    found = precondition(factors, as_params(joined("dW")), damping=4.0)
    assert all(map(np.array_equal, found, as_params(joined("U"))))


def test_the_direction_of_a_table_solves_a_system_whose_A_is_diagonal():
    system, counts = System(0), np.array([60.0, 28, 12, 0, 0, 0, 0, 0])  # 12.5 in the mean
    U = integers(5, 8, 2)
    dW = (counts + 4)[:, None] * U @ (system.G + np.eye(2))
    factors = jax.tree.map(jnp.asarray, mbp.TableFactors(counts, system.G))
    (found,) = precondition(factors, (dW,), damping=4.0)
    assert np.array_equal(found, U)


@pytest.mark.parametrize(("share", "scale"), [(0.25, 0.5), (4.0, 1.0)])
def test_a_step_is_scaled_to_the_clip_over_all_layers_and_added_to_the_velocity(share, scale):
    systems = System(0), System(2)
    factors = tuple(mbp.DenseFactors(jnp.array(each.A), jnp.array(each.G)) for each in systems)
    grads = tuple((jnp.array(each.dW[:, :4]), jnp.array(each.dW[:, 4])) for each in systems)
    along = float(sum((each.U * each.dW).sum() for each in systems))
    optimizer = mbp.kfac(0.5, factors, damping=4.0, momentum=0.5, clip=share * along / 4)
    state = optimizer.init(grads)
    for added_up in (1.0, 1.5):
        updates, state = optimizer.update(grads, state, factors=factors)
        for (W, b), each in zip(updates, systems, strict=True):
            expected = -0.5 * scale * added_up * each.U
            assert np.array_equal(np.column_stack([W, b]), expected)
    others = jax.tree.map(jnp.zeros_like, factors)
    _, state = optimizer.update(grads, state, factors=others)
    thirds = jax.tree.map(lambda leaf: leaf * (1 - jnp.float32(1) / 3), factors)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state.factors, thirds)))


def test_layers_without_factors_hold_none_and_a_stack_has_steps_in_front():
    network = mbp.sequential(
        mbp.Embedding(4, 2), mbp.stack(mbp.sequential(mbp.LayerNorm(), mbp.Dense(2)), 3)
    )
    x, y = jnp.array([[0, 1, 1]]), jnp.array([[1, 0, 0]])
    params = network.init(KEY, x)
    of = functools.partial(mbp.kfac_factors, network=network, fisher="empirical")
    optimizer = mbp.kfac(0.5, jax.eval_shape(of, params, x, y), clip=None)
    start = jax.tree.map(jnp.zeros_like, optimizer.init(params))

    @jax.jit
    def step(params, state):
        factors, grads = of(params, x, y), mbp.manual_grads(params, x, y, network=network)
        return factors, grads, *optimizer.update(grads, state, params, factors=factors)

    (table, ((norm, dense),)), grads, updates, state = step(params, start)
    assert isinstance(table, mbp.TableFactors) and isinstance(dense, mbp.DenseFactors)
    assert table.A.tolist() == [1, 2, 0, 0] and norm is None
    assert dense.A.shape == (3, 3, 3) and dense.G.shape == (3, 2, 2)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))
    of_norm, its_grads = updates[1][0][0], grads[1][0][0]
    assert all(map(np.array_equal, of_norm, jax.tree.map(lambda g: -0.5 * g, its_grads)))


def test_kfac_makes_more_of_a_step_than_sgd_and_adam():
    x, _, y, _ = (jnp.asarray(each[:256]) for each in digits())
    network = mbp.mlp([64, 8, 10], hidden=mbp.tanh)
    start = network.init(KEY, x)
    of = functools.partial(mbp.kfac_factors, x=x, y=y, network=network)

    def loss_after_20(optimizer, **more):
        def step(state, _):
            params, state = state
            loss, grads = mbp.manual_value_and_grads(params, x, y, network=network)
            given = {name: make(params) for name, make in more.items()}
            updates, state = optimizer.update(grads, state, params, **given)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (start, optimizer.init(start)), length=20)[1][-1]

    ours = loss_after_20(mbp.kfac(0.3, jax.eval_shape(of, start)), factors=of)
    sgd = jax.vmap(lambda rate: loss_after_20(optax.sgd(rate, momentum=0.9)))
    adam = jax.vmap(lambda rate: loss_after_20(optax.adam(rate)))
    assert (ours < sgd(jnp.array([0.1, 0.3, 1.0]))).all()
    assert (ours < adam(jnp.array([3e-3, 1e-2, 3e-2, 1e-1]))).all()


DENSE = (jnp.ones((3, 2)), jnp.ones(3))
NORMED = mbp.sequential(mbp.Dense(2), mbp.BatchNorm(), mbp.Dense(3))
TIED = mbp.tied(mbp.sequential(*[mbp.Dense(2, mbp.tanh)] * 2), ((0,), (1,)))
OPTIMIZER = mbp.kfac(0.1, mbp.DenseFactors(jnp.eye(3), jnp.eye(3)))


@dataclass(frozen=True)
class Unknown(Layer):
    """A layer of a kind that nobody has said a visit for."""

    def forward(self, params, x):
        return x, ()

    def backward(self, params, residuals, dout):
        return params, dout


UNKNOWN = Unknown()
ERRORS = {
    "batch norm": (
        lambda: mbp.kfac_factors(NORMED.init(KEY, X), X, Y, network=NORMED),
        r"BatchNorm\(\) mixes examples",
    ),
    "an unknown layer": (
        lambda: mbp.kfac_factors((), X, jnp.zeros(2, jnp.int32), network=UNKNOWN),
        "isn't known for layers of this kind",
    ),
    "not convex": (
        lambda: mbp.kfac_factors(DENSE, X, jnp.ones((2, 3)), loss=mbp.Focal()),
        r"Focal\(\) isn't convex",
    ),
    "a loss with parameters": (
        lambda: mbp.kfac_factors((DENSE, DENSE), X, Y, loss=mbp.LinearCrossEntropy(3)),
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
        r'fisher="sampled" draws signs: pass fisher_key=jax.random.key\(...\)',
    ),
    "a key too many": (
        lambda: mbp.kfac_factors(DENSE, X, Y, fisher_key=KEY),
        'fisher="exact" draws nothing: leave out fisher_key',
    ),
    "no factors": (
        lambda: OPTIMIZER.update(DENSE, OPTIMIZER.init(DENSE)),
        r"update needs factors=kfac_factors\(...\)",
    ),
    "factors of another network": (
        lambda: OPTIMIZER.update(
            DENSE, OPTIMIZER.init(DENSE), factors=(mbp.DenseFactors(jnp.eye(3), jnp.eye(3)),)
        ),
        r"nested like those that the optimiser was made for, .*; got ",
    ),
    "rate": (lambda: mbp.kfac(0.0, ()), "kfac: learning_rate must be a number above 0, got 0.0"),
    "damping": (
        lambda: mbp.kfac(0.1, (), damping=0.0),
        "kfac: damping must be a number above 0, got 0.0",
    ),
    "decay": (
        lambda: mbp.kfac(0.1, (), decay=1.0),
        "kfac: decay must be at least 0 and below 1, got 1.0",
    ),
    "momentum": (
        lambda: mbp.kfac(0.1, (), momentum=-0.5),
        "kfac: momentum must be at least 0 and below 1, got -0.5",
    ),
    "clip": (
        lambda: mbp.kfac(0.1, (), clip="1"),
        "kfac: clip must be a number above 0 or None, got '1', of type str",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_to_do(case):
    call, message = ERRORS[case]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
