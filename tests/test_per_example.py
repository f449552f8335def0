"""Per-example signals beyond their rules: every kind, wrong formulas, transformations, errors."""

import dataclasses
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp.activation import Activation
from manual_bp.layer import Combinator, Layer, Loss
from manual_bp.layers._recurrence import Recurrent
from manual_bp.signals.factored import factors, loss_factors
from manual_bp.signals.factors import Outer, Rows, squared_norms
from verify.judges import same
from verify.levels.agreement import verdicts
from verify.signals.per_example import SAMPLES, Sample, rule_of

REFUSED = {mbp.BatchNorm}
"""Kinds that mix examples."""
NO_LEAVES = {Combinator, Recurrent, Activation}
"""What layers are derived from, which are none themselves; combinators walk by themselves."""


def kinds(base):
    """Every kind of layer, or loss, that manual_bp defines."""
    for module in pkgutil.walk_packages(mbp.__path__, "manual_bp."):
        importlib.import_module(module.name)
    found, ahead = [], [base]
    while ahead:
        for kind in ahead.pop().__subclasses__():
            ahead.append(kind)
            if kind.__module__.startswith("manual_bp.") and kind not in NO_LEAVES:
                found.append(kind)
    return found


def is_leaf(kind):
    inside = ("manual_bp.signals.", "manual_bp.interop.")  # wrap one for their own walk
    return not issubclass(kind, Combinator) and not kind.__module__.startswith(inside)


@pytest.mark.parametrize("kind", [k for k in kinds(Layer) if is_leaf(k)], ids=lambda k: k.__name__)
def test_every_kind_of_layer_has_a_visit_or_is_refused(kind):
    visit = factors.dispatch(kind)
    assert visit is not factors.dispatch(Layer), kind
    refused = visit is factors.dispatch(mbp.BatchNorm)
    assert refused == (kind in REFUSED)


@pytest.mark.parametrize("kind", [k for k in kinds(Loss) if is_leaf(k)], ids=lambda k: k.__name__)
def test_every_kind_of_loss_has_its_factors(kind):
    assert kind.sweep is Loss.sweep or loss_factors.dispatch(kind) is not loss_factors.dispatch(
        Loss
    )


def leaves(network):
    children = network.children if isinstance(network, Combinator) else ()
    return {type(network)}.union(*map(leaves, children))


def test_every_kind_is_in_a_sample():
    judged = set().union(*(leaves(sample.network) for sample in SAMPLES))
    activations = {kind for kind in kinds(Layer) if issubclass(kind, Activation)}
    wrappers = {kind for kind in kinds(Layer) if kind.__module__.startswith("manual_bp.signals.")}
    assert set(kinds(Layer)) - judged - activations - wrappers == REFUSED


def test_the_masked_linear_recurrence_agrees():
    """Not among the rules: the share of the first step is the state's alone, which isn't asked."""
    sample = Sample(mbp.LinearRecurrence(masked=True, stateful=True), (2, 3, 2))
    assert all(verdict.ok for *_, verdict in verdicts(rule_of(sample, "grads"), 0))


# --- wrong formulas -------------------------------------------------------------------------


def is_found(found, wanted, *args):
    """Whether the judge without tolerances takes the two for the same."""
    return same(found, wanted, *args).ok


def dense_forms(errors, inputs):
    like = jax.ShapeDtypeStruct((errors.shape[-1], inputs.shape[-1]), errors.dtype)
    return Outer(errors[:, :, None], inputs[:, :, None], like)


def norms_of(errors, inputs):
    return (jnp.einsum("mso,msi->moi", errors, inputs) ** 2).sum((1, 2))


RNG = np.random.default_rng(0)
E, A = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 5))
F, B = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 5))


def test_places_are_not_summed_before_the_product():
    def right(e, a):
        return squared_norms((dense_forms(e, a),))

    def wrong(e, a):
        return (e.sum(1) ** 2).sum(1) * (a.sum(1) ** 2).sum(1)

    def each(e, a):
        return ((e**2).sum(2) * (a**2).sum(2)).sum(1)

    assert is_found(right, norms_of, E, A)
    assert not is_found(wrong, norms_of, E, A) and not is_found(each, norms_of, E, A)


def test_tied_weights_have_a_cross_term():
    def both(e, a, f, b):
        g = jnp.einsum("mso,msi->moi", e, a) + jnp.einsum("mso,msi->moi", f, b)
        return (g**2).sum((1, 2))

    def right(e, a, f, b):
        return squared_norms((dense_forms(e, a), dense_forms(f, b)))

    def wrong(e, a, f, b):
        return norms_of(e, a) + norms_of(f, b)

    assert is_found(right, both, E, A, F, B) and not is_found(wrong, both, E, A, F, B)


def test_a_token_that_comes_twice_adds_its_errors():
    tokens = jnp.array([[0, 1, 0], [2, 2, 2]])

    def rows(e):
        one = jnp.zeros((2, 3, 4), e.dtype)
        g = one.at[jnp.arange(2)[:, None], tokens].add(e)
        return (g**2).sum((1, 2))

    like = jax.ShapeDtypeStruct((3, 4), jnp.float64)

    def right(e):
        return squared_norms((Rows(e, tokens, like),))

    def wrong(e):
        return (e**2).sum((1, 2))

    assert is_found(right, rows, E) and not is_found(wrong, rows, E)


NETWORK = mbp.mlp([3, 4, 2], hidden=mbp.tanh)
X, Y = RNG.normal(size=(5, 3)), np.array([0, 1, 1, 0, 1])
PARAMS = NETWORK.init(jax.random.key(0), jnp.ones((1, 3)))


def test_there_is_no_share_of_the_batch_in_it():
    def one_by_one(params):
        each = [
            mbp.manual_grads(params, X[i : i + 1], Y[i : i + 1], network=NETWORK) for i in range(5)
        ]
        return jax.tree.map(lambda *g: jnp.stack(g), *each)

    def right(params):
        return mbp.per_example_grads(params, X, Y, network=NETWORK)

    def wrong(params):
        return mbp.per_example_grads(params, X, Y, network=NETWORK, weights=jnp.ones(5) / 5)

    wide = jax.tree.map(np.float64, PARAMS)
    assert is_found(right, one_by_one, wide) and not is_found(wrong, one_by_one, wide)


def test_their_mean_is_the_gradient():
    def mean(params):
        each = mbp.per_example_grads(params, X, Y, network=NETWORK)
        return jax.tree.map(lambda g: g.mean(0), each)

    def whole(params):
        return mbp.manual_grads(params, X, Y, network=NETWORK)

    assert is_found(mean, whole, jax.tree.map(np.float64, PARAMS))


# --- how it is called -----------------------------------------------------------------------


def norms(params, x, y, **settings):
    return mbp.per_example_norms(params, x, y, network=NETWORK, **settings)


def test_it_is_the_same_under_the_callers_jit_vmap_and_scan():
    x, y = np.stack([X, 2 * X])[:, :2], np.stack([Y, 1 - Y])[:, :2]

    def scanned(params, x):
        return jax.lax.scan(lambda carry, at: (carry, norms(params, *at)), 0, (x, y))[1]

    def mapped(params, x):
        return jax.jit(jax.vmap(norms, (None, 0, 0)))(params, x, y)

    def one_by_one(params, x):
        return jnp.stack([norms(params, *at) for at in zip(x, y, strict=True)])

    wide = jax.tree.map(np.float64, PARAMS)
    assert is_found(mapped, one_by_one, wide, x) and is_found(scanned, one_by_one, wide, x)


def test_params_may_be_tuples_lists_and_dicts_as_for_manual_grads():
    pair = (jnp.ones((2, 3)), jnp.zeros(2))
    x, y = jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])
    for params in (pair, [pair], (pair,), [list(pair)], [{"W": pair[0], "b": pair[1]}]):
        plain, each = (make(params, x, y) for make in (mbp.manual_grads, mbp.per_example_grads))
        assert jax.tree.structure(each) == jax.tree.structure(plain)
        shapes = [leaf.shape for leaf in jax.tree.leaves(each)]
        assert shapes == [(4, *leaf.shape) for leaf in jax.tree.leaves(plain)]
        squared = mbp.per_example_squared_norms(params, x, y)
        assert jax.tree.structure(squared) == jax.tree.structure(plain)


def test_narrow_params_give_gradients_of_their_dtype_and_norms_of_float32():
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    x = jnp.asarray(X, jnp.bfloat16)
    each = mbp.per_example_grads(narrow, x, Y, network=NETWORK)
    assert {leaf.dtype for leaf in jax.tree.leaves(each)} == {jnp.dtype(jnp.bfloat16)}
    assert norms(narrow, x, Y).dtype == jnp.float32
    assert mbp.gradient_gram(narrow, x, Y, network=NETWORK).dtype == jnp.float32


def test_there_may_be_one_example_but_not_none():
    x, y = jnp.asarray(X[:1], jnp.float32), jnp.asarray(Y[:1])
    (gram,), (one,) = mbp.gradient_gram(PARAMS, x, y, network=NETWORK), norms(PARAMS, x, y)
    assert gram.shape == (1,) and one > 0
    with pytest.raises(ValueError, match="at least one example"):
        norms(PARAMS, x[:0], y[:0])


def test_an_example_that_does_not_count_has_a_gradient_of_zero_whatever_it_holds():
    x = jnp.asarray(X, jnp.float32).at[1].set(jnp.nan)
    found = norms(PARAMS, x, Y, weights=jnp.array([1.0, 0, 1, 1, 1]))
    assert found[1] == 0 and bool((found[jnp.array([0, 2, 3, 4])] > 0).all())


def test_a_prediction_of_the_ignored_class_adds_nothing_even_nan():
    loss = mbp.LinearCrossEntropy(3, ignored_class=2)
    network = mbp.Dense(2)
    x, y = jnp.ones((2, 2, 2)), jnp.array([[0, 2], [1, 1]])
    params = network.init(jax.random.key(0), x), loss.init(jax.random.key(1), x)
    weights = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    spoilt = x.at[0, 1].set(jnp.nan)
    for each in (x, spoilt):
        g, own = mbp.per_example_grads(params, each, y, network=network, loss=loss, weights=weights)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((g, own)))


# --- errors ---------------------------------------------------------------------------------


def test_batch_norm_is_refused_with_its_place_and_what_to_do():
    network = mbp.sequential(mbp.Dense(3), mbp.BatchNorm(), mbp.Dense(2))
    x = jnp.ones((4, 3))
    params = network.init(jax.random.key(0), x)
    for signal in (mbp.per_example_grads, mbp.per_example_norms, mbp.gradient_gram):
        with pytest.raises(TypeError, match=r"in layer 2, BatchNorm\(\) mixes examples.*LayerNorm"):
            signal(params, x, jnp.zeros(4, int), network=network)


def test_a_layer_of_an_unknown_kind_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Double(Layer):
        def forward(self, params, x):
            return 2 * x, ()

        def backward(self, params, residuals, dout):
            return (), 2 * dout

    network = mbp.sequential(mbp.Dense(2), Double())
    params = network.init(jax.random.key(0), jnp.ones((1, 2)))
    with pytest.raises(TypeError, match=r"in layer 2, Double\(\): .*factored\.factors\.register"):
        mbp.per_example_norms(params, jnp.ones((3, 2)), jnp.zeros(3, int), network=network)


def test_a_loss_that_sweeps_in_its_own_way_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Pairs(Loss):
        def sweep(self, params, prediction, target, weights):
            return prediction.sum(-1), (), prediction - prediction.mean(0)

    with pytest.raises(TypeError, match=r"Pairs\(\): .*loss_factors\.register"):
        mbp.per_example_norms(PARAMS, jnp.ones((3, 3)), jnp.zeros(3), network=NETWORK, loss=Pairs())


def test_what_manual_grads_refuses_is_refused():
    with pytest.raises(TypeError, match="takes nothing"):
        mbp.per_example_norms(PARAMS, X, Y, network=NETWORK, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"class|target"):
        mbp.per_example_norms(PARAMS, X, Y + 5, network=NETWORK)
