"""Clipped sums, moments and noise scale: their errors, their noise, and what no rule draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp.signals import clipping
from manual_bp.signals.factors import Each, Outer, Uses, squared_norms
from verify.judges import same

NETWORK = mbp.mlp([3, 4, 2], hidden=mbp.tanh)
X = jax.random.normal(jax.random.key(1), (5, 3))
Y = jnp.array([0, 1, 1, 0, 1])
PARAMS = NETWORK.init(jax.random.key(0), X)


def test_without_weights_the_clipped_sum_of_short_gradients_is_m_times_the_mean():
    clipped = mbp.clipped_grads(PARAMS, X, Y, clip=1e6, network=NETWORK)
    ones = mbp.manual_grads(PARAMS, X, Y, weights=jnp.ones(5), network=NETWORK)
    assert same(
        lambda params, x: mbp.clipped_grads(params, x, Y, clip=1e6, network=NETWORK),
        lambda params, x: jax.tree.map(
            lambda each: 5 * each, mbp.manual_grads(params, x, Y, network=NETWORK)
        ),
        PARAMS,
        X,
    ).ok
    assert jax.tree.structure(clipped) == jax.tree.structure(ones)


@pytest.mark.parametrize("clip", [1e-3, 0.5])
def test_no_example_moves_the_sum_by_more_than_the_clip(clip):
    """Leaving one out moves the sum by min(‖g_i‖, C), which is what bounds the loss of privacy."""

    def total(params, x, weights):
        settings = {"weights": weights, "network": NETWORK}
        grads = mbp.clipped_grads(params, x, Y, clip=clip, **settings)
        return jnp.concatenate([each.reshape(-1) for each in jax.tree.leaves(grads)])

    def moved(params, x):
        everyone = total(params, x, jnp.ones(5))
        without = [total(params, x, jnp.ones(5).at[i].set(0)) for i in range(5)]
        return jnp.stack([((everyone - each) ** 2).sum() for each in without])

    def bound(params, x):
        norms = mbp.per_example_norms(params, x, Y, network=NETWORK)
        return jnp.minimum(norms, clip) ** 2

    assert same(moved, bound, PARAMS, X).ok


def test_one_sweep_and_two_give_the_same_sum(monkeypatch):
    def ours(params, x):
        return mbp.clipped_grads(params, x, Y, clip=0.3, network=NETWORK)

    def two(params, x):
        with monkeypatch.context() as patch:
            patch.setattr(clipping, "_holds_errors", lambda network: False)
            clipping._compiled.clear_cache()
            found = mbp.clipped_grads(params, x, Y, clip=0.3, network=NETWORK)
        clipping._compiled.clear_cache()
        return found

    assert same(ours, two, PARAMS, X).ok


def test_scans_checkpoints_and_convolutions_sweep_twice():
    assert clipping._holds_errors(NETWORK)
    assert clipping._holds_errors(
        mbp.tied(mbp.sequential(mbp.Dense(2), mbp.Dense(2)), ((0,), (1,)))
    )
    for inner in (
        mbp.stack(mbp.Dense(2), 2),
        mbp.checkpoint(mbp.Dense(2)),
        mbp.reversible(mbp.Dense(2), mbp.Dense(2), 2),
        mbp.Conv(2, 3),
    ):
        assert not clipping._holds_errors(mbp.sequential(mbp.skip(inner), mbp.Dense(2)))


def test_noise_is_the_multiplier_times_the_clip_times_what_is_drawn():
    def ones(key, shape, dtype):
        return jnp.ones(shape, dtype)

    plain = mbp.clipped_grads(PARAMS, X, Y, clip=0.5, network=NETWORK)
    noisy = mbp.clipped_grads(
        PARAMS,
        X,
        Y,
        clip=0.5,
        noise_multiplier=4.0,
        noise_key=jax.random.key(0),
        noise=ones,
        network=NETWORK,
    )
    for with_noise, without in zip(jax.tree.leaves(noisy), jax.tree.leaves(plain), strict=True):
        assert (with_noise == without + 2.0).all()


def test_the_noise_of_every_array_and_key_is_its_own():
    network = mbp.sequential(mbp.Dense(3), mbp.Dense(3))
    x = jnp.zeros((2, 3))
    params = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0), x))

    def drawn(seed):
        grads = mbp.clipped_grads(
            params,
            x,
            jnp.zeros((2, 3)),
            loss=mbp.SquaredError(),
            clip=1.0,
            noise_multiplier=1.0,
            noise_key=jax.random.key(seed),
            network=network,
        )
        return [np.ravel(each) for each in jax.tree.leaves(grads)]

    once, again, other = drawn(0), drawn(0), drawn(1)
    assert all((a == b).all() for a, b in zip(once, again, strict=True))
    assert not any((a == b).any() for a, b in zip(once, other, strict=True))
    assert not (once[0] == once[2]).any()  # the two weights have the same shape


def test_an_example_whose_norm_overflows_is_neither_dropped_nor_kept():
    params = (jnp.ones((1, 1)), jnp.zeros(1))
    settings = {"loss": mbp.SquaredError(), "clip": 1.0}
    x, y = jnp.array([[1e30], [0.5]]), jnp.array([[0.0], [0.0]])
    both = mbp.clipped_pass(params, x, y, **settings)
    assert both.norms[0] == jnp.inf
    assert all(jnp.isnan(each).all() for each in jax.tree.leaves(both.grads))
    finite = jnp.isfinite(both.norms).astype(float)
    left = mbp.clipped_grads(params, x, y, weights=finite, **settings)
    alone = mbp.clipped_grads(params, x[1:], y[1:], **settings)
    assert jax.tree.map(jnp.array_equal, left, alone) == (True, True)


class Doubled(mbp.Dense):
    """Another function than its parent: what Dense's gradient is made of doesn't hold."""

    def forward(self, params, x, **taken):
        out, residuals = super().forward(params, x, **taken)
        return 2 * out, residuals

    def backward(self, params, residuals, dout):
        return super().backward(params, residuals, 2 * dout)


def test_a_kind_derived_from_a_known_one_is_not_taken_for_it():
    network = mbp.sequential(mbp.Dense(3), Doubled(2))
    params = network.init(jax.random.key(0), X)
    with pytest.raises(TypeError, match=r"^in layer 2, Doubled\(2\): what the gradient of one"):
        mbp.clipped_grads(params, X, Y, clip=1.0, network=network)


def test_the_variance_of_narrow_params_is_not_that_of_a_rounded_mean():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    held = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    for signal in (
        lambda params: mbp.gradient_moments(params, X, Y, network=NETWORK).variance,
        lambda params: mbp.gradient_noise(params, X, Y, network=NETWORK).trace,
    ):
        jax.tree.map(np.testing.assert_array_equal, signal(params), signal(held))


@pytest.mark.parametrize("signal", [mbp.gradient_moments, mbp.gradient_noise])
def test_ignored_examples_and_those_of_weight_0_are_no_draws(signal):
    loss = mbp.SoftmaxCrossEntropy(ignored_class=-1)
    left = jnp.array([0, 1, 3, 4])

    def without(params, x):
        return of_batch(signal(params, x[left], Y[left], network=NETWORK))

    def ignored(params, x):
        return of_batch(signal(params, x, Y.at[2].set(-1), network=NETWORK, loss=loss))

    def weightless(params, x):
        weights = jnp.ones(5).at[2].set(0)
        return of_batch(signal(params, x, Y, network=NETWORK, weights=weights))

    assert same(ignored, without, PARAMS, X).ok
    assert same(weightless, without, PARAMS, X).ok


def of_batch(found):
    """What isn't a number for each example, nor a quotient whose divisor may be 0."""
    each = {"norms", "similarities", "noise_scale"}
    return {name: value for name, value in found._asdict().items() if name not in each}


def test_a_network_without_parameters_has_gradients_of_length_0():
    network = mbp.sequential(mbp.tanh)
    settings = {"network": network, "loss": mbp.SquaredError()}
    assert (mbp.per_example_norms(((),), X, X, **settings) == jnp.zeros(5)).all()
    assert (mbp.gradient_gram(((),), X, X, **settings) == jnp.zeros((5, 5))).all()
    assert mbp.clipped_grads(((),), X, X, clip=1.0, **settings) == ((),)


def test_noise_is_one_number_inside_the_callers_jit_too():
    def noisy(multiplier):
        return mbp.clipped_grads(
            PARAMS,
            X,
            Y,
            clip=1.0,
            noise_multiplier=multiplier,
            noise_key=jax.random.key(0),
            network=NETWORK,
        )

    with pytest.raises(TypeError, match="noise_multiplier must be a number, 0 or more, one for"):
        jax.jit(noisy)(jnp.array([0.0, 100.0]))
    found = jax.jit(noisy)(-1.0)
    assert all(jnp.isnan(each).all() for each in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"clip": 0.0}, ValueError, "clip must be a positive number, got 0.0."),
        ({"clip": float("inf")}, ValueError, "clip must be a positive number, got inf."),
        ({"clip": jnp.ones(5)}, TypeError, "one for all examples"),
        ({"clip": "1"}, TypeError, "one for all examples; got '1'."),
        (
            {"clip": 1.0, "noise_multiplier": 1.0},
            TypeError,
            "noise_multiplier was given alone: pass noise_key=jax.random.key(...) too",
        ),
        (
            {"clip": 1.0, "noise_key": 0},
            TypeError,
            "noise_key was given alone: pass noise_multiplier=... too",
        ),
        (
            {"clip": 1.0, "noise_multiplier": True, "noise_key": jax.random.key(0)},
            TypeError,
            "noise_multiplier must be a number, 0 or more, one for all params; got True.",
        ),
        (
            {"clip": 1.0, "noise_multiplier": 1.0, "noise_key": 3},
            TypeError,
            "noise_key must be a key, as jax.random.key(0) is; got 3.",
        ),
        (
            {"clip": 1.0, "noise_multiplier": -1.0, "noise_key": jax.random.key(0)},
            ValueError,
            "noise_multiplier must be 0 or more, got -1.0.",
        ),
    ],
)
def test_clip_and_noise_are_checked(given, error, says):
    with pytest.raises(error) as raised:
        mbp.clipped_grads(PARAMS, X, Y, network=NETWORK, **given)
    assert says in str(raised.value)


def test_inside_the_callers_jit_a_clip_that_is_not_positive_makes_nan():
    run = jax.jit(lambda clip: mbp.clipped_grads(PARAMS, X, Y, clip=clip, network=NETWORK))
    assert all(jnp.isnan(each).all() for each in jax.tree.leaves(run(-1.0)))
    assert all(jnp.isfinite(each).all() for each in jax.tree.leaves(run(1.0)))


def test_batch_norm_is_named_with_its_place_and_what_to_do():
    network = mbp.sequential(mbp.Dense(4), mbp.BatchNorm(), mbp.Dense(2))
    params = network.init(jax.random.key(0), X)
    for signal in (
        lambda **how: mbp.clipped_grads(params, X, Y, clip=1.0, **how),
        lambda **how: mbp.gradient_moments(params, X, Y, **how),
        lambda **how: mbp.gradient_noise(params, X, Y, **how),
        lambda **how: mbp.cosine_similarities(params, X, Y, **how),
        lambda **how: mbp.per_example_norms(params, X, Y, **how),
    ):
        with pytest.raises(TypeError) as raised:
            signal(network=network)
        message = str(raised.value)
        assert message.startswith("in layer 2, BatchNorm() mixes examples: ")
        assert "network.inference()" in message


def test_one_example_does_not_scatter():
    for signal in (mbp.gradient_moments, mbp.gradient_noise):
        with pytest.raises(ValueError, match="x holds 1 example: how gradients scatter needs"):
            signal(PARAMS, X[:1], Y[:1], network=NETWORK)


def trace_over_norm(noise):
    return noise.trace / noise.squared_norm


def test_the_noise_scale_is_the_trace_over_the_squared_norm_and_the_trace_the_variances_sum():
    assert same(
        lambda params, x: mbp.gradient_noise(params, x, Y, network=NETWORK).noise_scale,
        lambda params, x: trace_over_norm(mbp.gradient_noise(params, x, Y, network=NETWORK)),
        PARAMS,
        X,
    ).ok
    assert same(
        lambda params, x: mbp.gradient_noise(params, x, Y, network=NETWORK).trace,
        lambda params, x: sum(
            each.sum()
            for each in jax.tree.leaves(
                mbp.gradient_moments(params, x, Y, network=NETWORK).variance
            )
        ),
        PARAMS,
        X,
    ).ok


def test_of_a_gradient_that_is_0_the_cosines_are_0():
    params = (jnp.ones((1, 2)), jnp.zeros(1))
    x, y = jnp.array([[1.0, 2.0], [1.0, 1.0]]), jnp.array([[3.0], [0.0]])  # the first is met
    settings = {"loss": mbp.SquaredError()}
    cosines = mbp.cosine_similarities(params, x, y, **settings)
    assert cosines[0, 0] == cosines[0, 1] == cosines[1, 0] == 0
    assert mbp.gradient_noise(params, x, y, **settings).similarities[0] == 0


def test_moments_have_the_structure_of_params_and_half_precision_accumulates_in_float32():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    found = mbp.gradient_moments(params, X.astype(jnp.bfloat16), Y, network=NETWORK)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.mean)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(found.variance)} == {jnp.dtype(jnp.float32)}
    assert all(jax.tree.structure(each) == jax.tree.structure(params) for each in found)


def test_uses_that_cancel_have_a_norm_of_0_and_not_the_root_of_less():
    """(a + b) - (a + b), as two uses whose products round differently."""
    like = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    rng = np.random.default_rng(0)
    errors = jnp.asarray(rng.normal(size=(64, 1, 1, 2)), jnp.float32)
    inputs = jnp.asarray(rng.normal(size=(64, 1, 1, 3)), jnp.float32)
    once = Outer(errors, inputs, like)
    grads = jnp.einsum("msgo,msgi->moi", errors, inputs)
    found = Uses(once, Each(-grads, like)).take(squared_norms)
    assert (found >= 0).all()
