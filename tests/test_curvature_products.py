"""Hessian- and GGN-vector products, and the Hessians of losses."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp import activations as table
from manual_bp.signals import curvature_products as products
from manual_bp.signals import loss_curvature
from manual_bp.signals.loss_curvature import CURVATURES, hessian_factor, hessian_vector
from verify import judges, specs
from verify.rules import generator
from verify.signals import roperator
from verify.specs import activations as of_activations

RULES = roperator.rules()
LOSSES = [loss for kind in CURVATURES for loss in specs.of_loss(kind()).samples]
NETWORK = mbp.mlp([3, 4, 2], hidden=mbp.tanh)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 1, 0])
PARAMS: Any = NETWORK.init(jax.random.key(0), jnp.asarray(X))
VECTOR: Any = NETWORK.init(jax.random.key(1), jnp.asarray(X))
BOTH = (mbp.hessian_vector_product, mbp.ggn_vector_product)


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def judged(rule, kinds=("normal", "ties"), seed=0):
    """The first verdict that doesn't hold, or the last."""
    judge = judges.rational if rule.exact else judges.bounds
    found = [
        judge(rule, rule.draw(generator(seed, number), kind)) for number, kind in enumerate(kinds)
    ]
    return next((verdict for verdict in found if not verdict.ok), found[-1])


# --- equal to the definition ----------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equal_to_the_definition(rule):
    assert judged(rule).ok


def test_every_kind_of_loss_and_activation_is_judged():
    assert {type(loss) for loss in roperator.LOSSES} == set(CURVATURES)
    parametric = {mbp.LinearCrossEntropy}
    assert {spec.loss for spec in specs.losses()} - parametric == set(CURVATURES)
    assert set(of_activations.JAX) == {type(each) for each in roperator.activations()}


@pytest.mark.parametrize("activation", roperator.activations(), ids=repr)
def test_every_activation_in_a_network(activation):
    network = mbp.sequential(mbp.Dense(2, activation), activation, mbp.Dense(2))
    rule = roperator.of_products(network, mbp.SquaredError(), (2, 2))
    assert judged(rule, ("normal", "normal")).ok


NETWORKS = (
    # x enters other than through a dense layer: with R{x} = 0 beside it
    mbp.sequential(mbp.skip(mbp.Dense(2, mbp.silu)), mbp.Dense(2)),
    mbp.parallel(mbp.Dense(2, mbp.tanh), mbp.Dense(2), combine="sum"),
    mbp.sequential(mbp.stack(mbp.Dense(2, mbp.tanh), 2), mbp.Dense(2)),
    mbp.tied(mbp.sequential(mbp.Dense(2, mbp.tanh), mbp.Dense(2)), ((0,), (1,))),
    mbp.checkpoint(mbp.sequential(mbp.Dense(2, mbp.tanh), mbp.Dense(2))),
    mbp.reversible(mbp.Dense(1, mbp.tanh), mbp.Dense(1, mbp.sigmoid), 2),
    mbp.sequential(mbp.skip(mbp.tanh), mbp.parallel(mbp.tanh, mbp.silu), mbp.Dense(2, mbp.tanh)),
    mbp.sequential(mbp.sequential(mbp.tanh), mbp.sequential(mbp.silu, mbp.Dense(2)), mbp.mish),
)


@pytest.mark.parametrize("network", NETWORKS, ids=repr)
def test_every_way_through_combinators(network):
    rule = roperator.of_products(network, mbp.SoftmaxCrossEntropy(), (2, 2))
    assert judged(rule, ("normal", "normal")).ok


@pytest.mark.parametrize("case", roperator.CASES, ids=str)
def test_both_products_of_every_case(case):
    assert judged(roperator.of_products(*case)).ok


def test_sequences_have_a_prediction_for_each_step():
    network = mbp.sequential(mbp.Dense(2, mbp.tanh), mbp.Dense(3))
    rule = roperator.of_products(network, mbp.SoftmaxCrossEntropy(), (2, 2, 2), True)
    assert judged(rule, ("normal", "normal")).ok


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_every_loss_below_a_network(loss):
    verdict = judged(roperator.of_loss_product(loss), ("normal", "large"))
    assert verdict.ok, verdict
    if roperator.bounded(loss):
        network = mbp.sequential(mbp.Dense(2, mbp.tanh), mbp.Dense(3))
        assert judged(roperator.of_products(network, loss, (2, 2), True), ("normal",)).ok


@pytest.mark.parametrize("loss", list(filter(roperator.is_convex, LOSSES)), ids=repr)
def test_factors_make_the_hessian(loss):
    prediction, target, v = roperator.of_loss_product(loss).draw(generator(3), "normal")

    def by_factors(prediction, v):
        factor = hessian_factor(loss, prediction, target)
        return (factor * (factor * v).sum(-1, keepdims=True)).sum(0)

    of_loss = lambda prediction, v: hessian_vector(loss, prediction, target, v)  # noqa: E731
    verdict = judges.same(by_factors, of_loss, prediction, v)
    assert verdict.ok, verdict
    with jax.enable_x64(True):
        assert hessian_factor(loss, jnp.asarray(prediction), target).shape == (3, 2, 3)


@pytest.mark.parametrize("product", BOTH)
def test_symmetric(product):
    def inner(params, u, v):
        found = product(params, v, X, Y, network=NETWORK)
        return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (u, found)), strict=True))

    turned = lambda params, u, v: inner(params, v, u)  # noqa: E731
    assert judges.same(inner, turned, PARAMS, PARAMS, VECTOR).ok
    doubled = lambda params, u, v: 2 * inner(params, u, v)  # noqa: E731
    assert not judges.same(inner, doubled, PARAMS, PARAMS, VECTOR).ok


def test_compiled_it_is_exact_on_the_lattice():
    """L1: small integers in float32, m = 4; every product and sum is exact."""
    network, loss = mbp.mlp([3, 4, 2], hidden=mbp.squared_relu), mbp.SquaredError()
    draw = lambda leaf: RNG.integers(-2, 3, leaf.shape).astype(np.float32)  # noqa: E731
    x, y = draw(X), draw(X[:, :2])
    theirs = jax.jit(partial(roperator.by_autodiff, network, loss))
    for _ in range(5):
        params, vector = jax.tree.map(draw, PARAMS), jax.tree.map(draw, PARAMS)
        settings: Any = {"network": network, "loss": loss}
        ours = {"HG"[i]: BOTH[i](params, vector, x, y, **settings) for i in (0, 1)}
        found = theirs(params, vector, x, y, None)
        equal(ours, found)
        assert any(leaf.any() for leaf in jax.tree.leaves(found["H"]))


# --- wrong formulas are seen ----------------------------------------------------------------


def _without_ra(visit, moving, dout, params, residuals):
    rest = jnp.zeros_like(residuals.ra) if not isinstance(residuals.ra, tuple) else ()
    return visit(moving, dout, params, residuals._replace(ra=rest))


def _without_direction(visit, moving, dout, params, residuals):
    return visit(moving, dout, jax.tree.map(lambda leaf: leaf.at[..., 1].set(0), params), residuals)


def _without_b(together, params, direction):
    return together(params, tuple(each._replace(b=jnp.zeros_like(each.b)) for each in direction))


def _without_weights(weights_of, *given):
    return jnp.ones_like(weights_of(*given))


WRONG = {
    "g'' dropped": (table.Tanh, "curvature", lambda right, z: 0 * z),
    "g'' of the wrong sign": (table.Tanh, "curvature", lambda right, z: 2 * z),
    "dZ R{A} dropped": (products, "hessian_visit", _without_ra),
    "dZ V dropped": (products, "hessian_visit", _without_direction),
    "V_b dropped": (products, "together", _without_b),
    "H of the loss dropped": (products, "hessian_vector", lambda right, *given: given[-1]),
    "softmax without its mean": (
        loss_curvature,
        "softmax",
        lambda right, z: right(z) + 0.1,
    ),
    "no 1/m": (products, "weights_of", _without_weights),
    "G for H": (products, "hessian_visit", lambda right, *given: _gauss_newton(*given)),
}


def _gauss_newton(moving, dout, params, residuals):
    seen, dx = products.gauss_newton_visit(moving, dout[1], params, residuals)
    return seen, jnp.stack([dout[0] @ params.W[..., 0], dx])


@pytest.mark.parametrize("name", WRONG)
def test_wrong_formulas_are_seen(name, monkeypatch):
    rule = roperator.of_products(NETWORK, mbp.SoftmaxCrossEntropy(), (2, 3))
    assert judged(rule, ("normal",)).ok
    place, attribute, wrong = WRONG[name]
    right = getattr(place, attribute)
    changed = partial(wrong, right)
    jax.clear_caches()
    if isinstance(place, type):
        monkeypatch.setattr(place, attribute, lambda layer, *given: changed(*given))
    else:
        monkeypatch.setattr(place, attribute, changed)
    rule = roperator.of_products(NETWORK, mbp.SoftmaxCrossEntropy(), (2, 3))
    assert not judged(rule, ("normal",)).ok
    jax.clear_caches()


# --- as callers use them --------------------------------------------------------------------


@pytest.mark.parametrize("product", BOTH)
def test_params_as_people_write_them(product):
    """Without a network they are the notes' relu MLP, and what comes back is nested alike."""
    relu = mbp.mlp([3, 4, 2])
    expected = product(PARAMS, VECTOR, X, Y, network=relu)
    for write in (
        lambda pair: (pair.W, pair.b),
        lambda pair: [pair.W, pair.b],
        lambda pair: {"b": pair.b, "W": pair.W},
    ):
        params, vector = ([write(pair) for pair in tree] for tree in (PARAMS, VECTOR))
        found = product(params, vector, X, Y)
        equal(found, [write(pair) for pair in expected])


@pytest.mark.parametrize("product", BOTH)
def test_under_the_callers_jit_vmap_and_scan(product):
    run = partial(product, network=NETWORK)
    expected = run(PARAMS, VECTOR, X, Y)
    equal(jax.jit(run)(PARAMS, VECTOR, X, Y), expected)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, 0 * leaf]), VECTOR)
    _, scanned = jax.lax.scan(lambda _, each: (None, run(PARAMS, each, X, Y)), None, twice)
    equal(jax.tree.map(lambda leaf: leaf[0], scanned), expected)
    mapped = jax.vmap(run, (None, 0, None, None))(PARAMS, twice, X, Y)
    assert not any(leaf[1].any() for leaf in jax.tree.leaves(mapped))
    verdict = judges.same(
        lambda vectors: jax.vmap(run, (None, 0, None, None))(PARAMS, vectors, X, Y),
        lambda vectors: jax.tree.map(
            lambda *each: jnp.stack(each),
            *(run(PARAMS, jax.tree.map(lambda v, i=i: v[i], vectors), X, Y) for i in (0, 1)),
        ),
        twice,
    )
    assert verdict.ok, verdict


@pytest.mark.parametrize("product", BOTH)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_are_those_of_params(product, dtype):
    network = mbp.sequential(mbp.skip(mbp.Dense(3, mbp.silu)), mbp.Dense(2, mbp.tanh, bias=False))
    x = jnp.asarray(X, dtype)
    params = network.init(jax.random.key(0), x)
    vector = jax.tree.map(lambda leaf: np.ones(leaf.shape), params)  # NumPy's float64
    found = product(params, vector, x, Y, network=network)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("product", BOTH)
def test_weight_0_contributes_exactly_0(product):
    run = partial(product, PARAMS, VECTOR, network=NETWORK)
    weights = np.array([0.5, 0.25, 0.0, 0.25], np.float32)
    expected = run(X, Y, weights=weights)
    x, y = X.copy(), Y.copy()
    x[2], y[2] = np.nan, 7
    equal(run(x, y, weights=weights), expected)
    idle = run(X, Y, weights=np.zeros(4, np.float32))
    assert not any(leaf.any() for leaf in jax.tree.leaves(idle))


@pytest.mark.parametrize("product", BOTH)
def test_the_ignored_class_does_not_count(product):
    loss = mbp.SoftmaxCrossEntropy(ignored_class=-1)
    run = partial(product, PARAMS, VECTOR, network=NETWORK)
    some = run(X, np.array([0, -1, 1, -1]), loss=loss)
    weights = np.array([0.5, 0, 0.5, 0], np.float32)
    equal(some, run(X, np.array([0, 0, 1, 0]), weights=weights))
    none = run(X, np.full(4, -1), loss=loss)
    assert not any(leaf.any() for leaf in jax.tree.leaves(none))


@pytest.mark.parametrize("product", BOTH)
@pytest.mark.parametrize("loss", [mbp.SoftmaxCrossEntropy(), mbp.MulticlassHinge()], ids=repr)
def test_inside_jit_a_class_that_does_not_exist_poisons(product, loss):
    run = jax.jit(partial(product, network=NETWORK, loss=loss))
    found = run(PARAMS, VECTOR, X, np.array([0, 1, 2, 0]))
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(found))


def test_gauss_newton_is_the_hessian_of_a_network_linear_in_its_params():
    one = mbp.sequential(mbp.tanh, mbp.Dense(2))
    drawn = [one.init(jax.random.key(seed), jnp.asarray(X)) for seed in (0, 1)]
    verdict = judges.same(
        *(lambda p, v, f=f: f(p, v, X, Y, network=one) for f in BOTH),
        *drawn,
    )
    assert verdict.ok, verdict


def test_hessians_of_losses_are_where_the_table_says():
    z = jnp.array([[-1e4, 0.0, 1e4]])
    ones = jnp.ones_like(z)
    for loss in (mbp.LogCosh(), mbp.SigmoidBinaryCrossEntropy(), mbp.Focal()):
        assert jnp.isfinite(hessian_vector(loss, z, ones, ones)).all(), loss
    tail = hessian_vector(mbp.SigmoidBinaryCrossEntropy(), jnp.array([[40.0]]), *[ones[:, :1]] * 2)
    assert tail[0, 0] > 0  # 1 - σ would be 0
    nothing = hessian_vector(mbp.CosineSimilarity(), 0 * z, ones, ones)
    np.testing.assert_array_equal(nothing, 0 * ones)


# --- errors ---------------------------------------------------------------------------------

UNSUPPORTED = {
    "LayerNorm": mbp.sequential(mbp.Dense(4, mbp.tanh), mbp.LayerNorm(), mbp.Dense(2)),
    "Dropout": mbp.sequential(mbp.Dense(4, mbp.tanh), mbp.Dropout(0.5), mbp.Dense(2)),
    "BatchNorm": mbp.sequential(mbp.Dense(4, mbp.tanh), mbp.BatchNorm(), mbp.Dense(2)),
    "multiplies": mbp.parallel(mbp.Dense(2), mbp.Dense(2), combine="product"),
    "Conv": mbp.sequential(mbp.Conv(2, (3, 3)), mbp.Flatten(), mbp.Dense(2)),
}


@pytest.mark.parametrize("product", BOTH)
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_layers_are_named(product, name):
    with pytest.raises(TypeError, match="has no R-operator") as caught:
        product(PARAMS, VECTOR, X, Y, network=UNSUPPORTED[name])
    assert name in str(caught.value)
    assert "Dense, activations and Flatten" in str(caught.value)
    if name == "LayerNorm":
        assert str(caught.value).startswith("in layer 2, LayerNorm()")


@pytest.mark.parametrize("product", BOTH)
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda v: v[:1], TypeError, ("nested like params", "expected", "got")),
        (lambda v: tuple((p.W, p.b) for p in v), TypeError, ("nested like params",)),
        (
            lambda v: (v[0]._replace(W=v[0].W.T), v[1]),
            ValueError,
            ("vector[0].W", "(3, 4)", "expected (4, 3)", "not broadcast"),
        ),
        (
            lambda v: (v[0], v[1]._replace(b=jnp.zeros(2, int))),
            TypeError,
            ("vector[1].b", "floating-point", "int32"),
        ),
        (
            lambda v: (v[0], v[1]._replace(b=1.0)),
            TypeError,
            ("vector[1].b", "floating-point", "float"),
        ),
    ],
)
def test_vectors_that_do_not_fit(product, change, error, says):
    with pytest.raises(error) as caught:
        product(PARAMS, change(VECTOR), X, Y, network=NETWORK)
    for each in says:
        assert each in str(caught.value)


class Own(mbp.SquaredError):
    """A loss that somebody derived from one of ours: its value may be another."""


@pytest.mark.parametrize("product", BOTH)
def test_losses_without_a_hessian_are_named(product):
    run = partial(product, PARAMS, VECTOR, X, Y, network=NETWORK)
    with pytest.raises(TypeError, match=r"LinearCrossEntropy.*Dense\(classes\)"):
        run(loss=mbp.LinearCrossEntropy(2))
    with pytest.raises(TypeError, match=r"Own\(\) has no Hessian by hand.*SoftmaxCrossEntropy"):
        run(loss=Own())
    with pytest.raises(TypeError, match="Call it"):
        run(loss=mbp.SquaredError)
    with pytest.raises(ValueError, match="weights have shape"):
        run(weights=np.ones(3))


@pytest.mark.parametrize("loss", [mbp.Focal(), mbp.CosineSimilarity()], ids=repr)
def test_losses_that_are_not_convex_have_no_factors(loss):
    z = jnp.ones((2, 3))
    with pytest.raises(TypeError, match="isn't convex") as caught:
        hessian_factor(loss, z, z)
    assert repr(loss) in str(caught.value)
    assert "SquaredError" in str(caught.value) and "hessian_vector" in str(caught.value)


def test_focal_and_cosine_do_curve_down():
    """Why they have none."""
    z, one = jnp.full((1, 1), -4.0), jnp.ones((1, 1))
    assert hessian_vector(mbp.Focal(), z, one, one)[0, 0] < 0
    a, v = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    assert (hessian_vector(mbp.CosineSimilarity(), a, -a, v) * v).sum() < 0
