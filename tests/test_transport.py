"""Error transport as researchers use it; its rules are judged by verify/signals/transport.py."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp.signals.angles import angle
from manual_bp.signals.transport_contract import MATRICES, matrices, numbered
from verify import judges, specs
from verify.rules import generator
from verify.signals.transport import rules

BACK, DIRECT = mbp.FeedbackAlignment(), mbp.DirectFeedbackAlignment()
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])
MLP = mbp.mlp([4, 5, 3], hidden=mbp.tanh)
PARAMS = MLP.init(jax.random.key(0), X)
STANDARD_ERRORS = 6
"""A right count lies further off once in 5e8 runs."""
ROUNDING = 4 * np.finfo(np.float32).eps * 180 / np.pi
"""An angle of 0 in degrees: û and v̂ are each as long as 1 but for two roundings of length ε."""


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --- definitions ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", rules(), ids=str)
def test_each_rule_is_its_definition(rule):
    for seed, kind in enumerate(("normal", "ties")):
        args = rule.draw(generator(seed), kind)
        assert "L4 bounds" in rule.omitted or judges.bounds(rule, args).ok
        assert not rule.exact or judges.rational(rule, args).ok


IMAGES = mbp.sequential(
    mbp.Conv(3, (2, 2), stride=2, groups=1),
    mbp.BatchNorm(),
    mbp.relu,
    mbp.ConvTranspose(2, (2, 2), stride=2),
    mbp.MaxPool((2, 2)),
    mbp.Flatten(),
    mbp.parallel(mbp.Dense(3), mbp.Dense(3, mbp.sigmoid), combine="product"),
    mbp.stack(mbp.checkpoint(mbp.skip(mbp.Dense(3, mbp.tanh))), 2),
)
SEQUENCES = mbp.tied(
    mbp.sequential(
        mbp.Embedding(3, 4),
        mbp.skip(mbp.sequential(mbp.RMSNorm(), mbp.MultiHeadAttention(2, causal=True))),
        mbp.reversible(mbp.GatedMLP(3), mbp.Dense(2, mbp.tanh), 2),
        mbp.GRU(4),
        mbp.LSTM(4),
        mbp.RNN(4),
        mbp.Dense(3, bias=False),
    ),
    ((0, "W"), (6, "W")),
)


@pytest.mark.parametrize(
    ("network", "x", "y"),
    [
        (MLP, X, Y),
        (IMAGES, np.random.default_rng(1).normal(size=(3, 4, 4, 1)).astype(np.float32), Y[:3]),
        (SEQUENCES, np.array([[0, 1, 2], [2, 2, 1]]), np.array([[1, 2, 0], [2, 1, 1]])),
    ],
    ids=["mlp", "images", "sequences"],
)
def test_the_weights_themselves_as_feedback_are_backpropagation_to_the_last_bit(network, x, y):
    params = network.init(jax.random.key(0), x)
    plain = mbp.manual_pass(params, x, y, network=network)
    for transport, given in ((mbp.Transport(), {}), (BACK, {"feedback": params})):
        step = mbp.transported_pass(params, x, y, transport=transport, network=network, **given)
        equal(step.grads, plain.grads)
        equal(step.true_grads, plain.grads)
        equal((step.loss, step.prediction), (plain.loss, plain.prediction))
        equal(step.observed, plain.observed)
        assert all((each <= ROUNDING).all() for each in jax.tree.leaves(step.angles))


def test_the_other_rules_pass_through_every_layer():
    x, y = np.array([[0, 1, 2], [2, 2, 1]]), np.array([[1, 2, 0], [2, 1, 1]])
    params = SEQUENCES.init(jax.random.key(0), x)
    for transport in (DIRECT, mbp.SignSymmetry(), mbp.NoisyErrors(0.1)):
        feedback = transport.init(jax.random.key(1), params, x, network=SEQUENCES)
        key = jax.random.key(2) if "transport_key" in transport.takes else None
        step = mbp.transported_pass(
            params,
            x,
            y,
            transport=transport,
            feedback=feedback,
            transport_key=key,
            network=SEQUENCES,
        )
        equal(jax.tree.map(jnp.shape, step.grads), jax.tree.map(jnp.shape, params))
        ((first, *_, last),) = step.angles
        assert 0 < first < 180 and last == ()  # tied: at the first of its places


def test_every_kind_of_layer_says_which_of_its_params_carry_errors():
    tables = (mbp.Embedding, mbp.PositionEmbedding)
    for spec in specs.layers():
        for layer, shape in spec.samples:
            if isinstance(layer, mbp.Transport | tuple) or hasattr(layer, "children"):
                continue
            tokens = isinstance(layer, mbp.Embedding)
            x = jax.ShapeDtypeStruct(shape, jnp.int32 if tokens else jnp.float32)
            params = jax.eval_shape(layer.init, jax.random.key(0), x)
            wide = [
                name
                for name, each in (params._asdict() if params else {}).items()
                if hasattr(each, "ndim") and each.ndim > 1
            ]
            assert sorted(matrices(layer)) == ([] if isinstance(layer, tables) else sorted(wide))


def test_one_backward_pass_costs_what_backpropagation_does():
    def operations(function, **given):
        run = jax.jit(lambda params: function(params, X, Y, network=MLP, **given))
        return (run.lower(PARAMS).compile().cost_analysis() or {})["flops"]

    plain = operations(mbp.manual_grads)
    fed = {"transport": BACK, "feedback": BACK.init(jax.random.key(1), PARAMS, X, network=MLP)}
    assert operations(mbp.transported_grads, **fed) == plain
    assert operations(mbp.transported_pass, **fed) > plain


# --- angles ---------------------------------------------------------------------------------


def test_an_angle_is_exact_where_the_cosine_has_lost_it():
    u, across = np.array([3.0, 4.0], np.float32), np.array([-4.0, 3.0], np.float32)
    for size in (2.0**-10, 2.0**-20):
        theta = np.rad2deg(np.arctan(size))
        for v, expected in ((u + size * across, theta), (-(u + size * across), 180 - theta)):
            found = float(angle([jnp.asarray(u)], [jnp.asarray(v)]))
            assert np.abs(found - expected) <= 2 * ROUNDING
    v = u + 2.0**-13 * across
    cosine = (u @ v) / (np.linalg.norm(u) * np.linalg.norm(v))
    assert np.rad2deg(np.arccos(cosine)) == 0  # which is what this is not


def test_angles_of_zeros_of_the_smallest_and_of_what_isnt_finite():
    u, zeros = [jnp.array([1.0, 2.0]), jnp.array([2.0])], [jnp.zeros(2), jnp.zeros(1)]
    assert angle(u, zeros) == angle(zeros, u) == 90
    assert angle(zeros, zeros) == 0 and angle(u, u) <= ROUNDING
    assert angle(u, [-each for each in u]) >= 180 - ROUNDING
    tiny, huge = ([each * size for each in u] for size in (2.0**-100, 2.0**100))
    assert angle(tiny, huge) <= ROUNDING
    for each in (jnp.nan, jnp.inf):
        assert jnp.isnan(angle(u, [jnp.array([1.0, each]), jnp.array([2.0])]))


def test_each_repetition_has_an_angle_of_its_own():
    network = mbp.sequential(mbp.stack(mbp.skip(mbp.Dense(4, mbp.tanh)), 3), mbp.relu, mbp.Dense(3))
    params = network.init(jax.random.key(0), X)
    feedback = BACK.init(jax.random.key(1), params, X, network=network)
    step = mbp.transported_pass(params, X, Y, transport=BACK, feedback=feedback, network=network)
    ((found,),), none, last = step.angles
    ours, theirs = (jax.tree.leaves(each[0]) for each in (step.grads, step.true_grads))
    each = [angle([o[at] for o in ours], [t[at] for t in theirs]) for at in range(3)]
    assert (np.abs(found - jnp.stack(each)) <= ROUNDING).all()
    assert (found > 1).all() and none == () and last <= ROUNDING


# --- rules ----------------------------------------------------------------------------------


def test_feedback_alignment_learns_and_turns_the_weights_towards_its_matrices():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6)).astype(np.float32)
    y = jnp.asarray((x[:, :3] * x[:, 3:]).sum(1) > 0).astype(int)
    network = mbp.mlp([6, 32, 16, 2], hidden=mbp.tanh)
    params = network.init(jax.random.key(0), x)
    feedback = BACK.init(jax.random.key(1), params, x, network=network)

    def step(params, _):
        given = {"transport": BACK, "feedback": feedback, "network": network}
        found = mbp.transported_pass(params, x, y, **given)
        moved = jax.tree.map(lambda each, grad: each - 0.5 * grad, params, found.grads)
        return moved, (found.loss, found.angles)

    _, (losses, (first, second, last)) = jax.lax.scan(step, params, length=300)
    assert losses[-1] < losses[0] / 2
    for hidden in (first, second):
        assert hidden[-50:].max() < 90
        assert hidden[-50:].mean() < hidden[:5].mean()
    assert (last <= ROUNDING).all()


def test_sign_symmetry_has_the_weights_signs_and_length():
    W = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    layer, x = mbp.Dense(5), jnp.ones((5, 4))
    params = layer.init(jax.random.key(0), x)._replace(W=W)
    _, residuals = layer.forward(params, x)
    _, S = mbp.SignSymmetry().backward(layer, params, residuals, jnp.eye(5), None)
    np.testing.assert_array_equal(np.sign(S), np.sign(W))
    wide = lambda W: W.astype(np.float64)  # noqa: E731
    assert len(np.unique(np.abs(S))) == 1
    apart = np.abs(np.linalg.norm(wide(np.asarray(S))) - np.linalg.norm(wide(W)))
    assert apart <= 20 * np.finfo(np.float32).eps * np.linalg.norm(wide(W))  # a rounding each


def test_errors_are_rounded_to_the_nearest_step_of_their_own_example():
    v = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    v *= 10.0 ** np.arange(-30, 20)[:, None]  # examples of all sizes
    v[3] = 0
    for bits in (2, 3, 8, 16):
        steps = 2 ** (bits - 1) - 1
        found = np.asarray(mbp.QuantizedErrors(bits).rounded(jnp.asarray(v))).astype(np.float64)
        largest = np.abs(v).max(1, keepdims=True)
        assert (np.abs(found).max(1, keepdims=True) == largest).all()
        allowed = largest * (0.5 / steps + 4 * np.finfo(np.float32).eps)
        assert (np.abs(found - v) <= allowed).all()
        assert all(len(np.unique(row)) <= 2 * steps + 1 for row in found)


def test_rounding_at_random_is_right_on_average_and_never_beyond_the_largest():
    v = jnp.array([[0.3, -0.25, 1.0, 0.0, -1.0, 0.9]])
    rule, count = mbp.QuantizedErrors(3, stochastic=True), 2**14
    keys = jax.random.split(jax.random.key(0), count)
    found = np.asarray(jax.vmap(lambda key: rule.rounded(v, key))(keys)).astype(np.float64)[:, 0]
    frac = np.asarray(v[0], np.float64) * 3 % 1
    spread = np.sqrt(frac * (1 - frac) / count) / 3
    apart = np.abs(found.mean(0) - np.asarray(v[0], np.float64))
    assert (apart <= STANDARD_ERRORS * spread + np.finfo(np.float32).eps).all()
    assert (found[:, 2:5] == [1, 0, -1]).all()


def test_noise_is_normal_and_as_large_as_it_says():
    count, rule = 2**16, mbp.NoisyErrors(0.5)
    layer, x = mbp.Dense(2), jnp.ones((3, count))
    params = layer.init(jax.random.key(0), x)
    _, residuals = layer.forward(params, x)
    dout = jnp.array([[1.0, 0.0], [0.0, 100.0], [0.0, 0.0]])
    carried = mbp.Carried(None, jax.random.key(1), dout)
    _, true = layer.backward(params, residuals, dout)
    _, dx = rule.backward(layer, params, residuals, dout, carried)
    true = np.asarray(true, np.float64)
    rms = np.sqrt((true**2).mean(1, keepdims=True))
    noise = (dx - true)[:2] / (0.5 * rms[:2])
    assert (np.abs(noise.mean(1)) < STANDARD_ERRORS / np.sqrt(count)).all()
    assert (np.abs((noise**2).mean(1) - 1) < STANDARD_ERRORS * np.sqrt(2 / count)).all()
    within, share = (np.abs(noise) < 1).mean(1), math.erf(0.5**0.5)
    spread = np.sqrt(share * (1 - share) / count)
    assert (np.abs(within - share) < STANDARD_ERRORS * spread).all()
    assert (dx[2] == 0).all()


def test_every_use_of_every_layer_has_noise_of_its_own():
    body = mbp.stack(mbp.skip(mbp.Dense(4, mbp.tanh)), 2)
    network = mbp.tied(mbp.sequential(body, mbp.relu, body, mbp.Dense(3)), ((0,), (2,)))
    params = network.init(jax.random.key(0), X)
    prediction, residuals = network.forward(params, X)
    numbers = jax.tree.leaves(numbered(network, prediction, params, residuals))
    found = np.concatenate([each.ravel() for each in numbers])
    assert sorted(found) == list(range(2 * 2 * 2 + 2))


# --- as callers use it ----------------------------------------------------------------------


def test_params_as_people_write_them():
    params = [{"W": np.asarray(W), "b": np.asarray(b)} for W, b in PARAMS]
    for rule in (BACK, DIRECT):
        feedback = rule.init(jax.random.key(1), params, X)
        step = mbp.transported_pass(params, X, Y, transport=rule, feedback=feedback)
        equal(jax.tree.map(jnp.shape, step.grads), jax.tree.map(jnp.shape, params))
        assert len(step.angles) == 2 and step.angles[0] > 1 > ROUNDING >= step.angles[1]


def test_inside_the_callers_own_transformations():
    rule = mbp.QuantizedErrors(4, stochastic=True)

    def run(key):
        given = {"transport": rule, "transport_key": key, "network": MLP}
        return mbp.transported_grads(PARAMS, X, Y, **given)

    keys = jax.random.split(jax.random.key(0), 2)
    each = [run(key) for key in keys]
    assert (each[0][0].W != each[1][0].W).any()  # another key, other errors
    equal(run(keys[0]), each[0])
    for found in (jax.vmap(run)(keys), jax.lax.scan(lambda _, key: ((), run(key)), (), keys)[1]):
        shapes = jax.tree.map(lambda leaf: leaf.shape[1:], found)
        equal(shapes, jax.tree.map(jnp.shape, PARAMS))


def test_dropout_has_a_key_of_its_own_and_weights_are_as_everywhere():
    network = mbp.sequential(mbp.Dense(8, mbp.tanh), mbp.Dropout(0.5), mbp.Dense(3))
    params = network.init(jax.random.key(0), X)
    given = {"network": network, "key": jax.random.key(3), "weights": np.arange(6.0)}
    rule = {"transport": mbp.NoisyErrors(0.0), "transport_key": jax.random.key(4)}
    step = mbp.transported_pass(params, X, Y, **rule, **given)
    equal(step.grads, mbp.manual_grads(params, X, Y, **given))


def test_gradients_have_the_params_dtypes():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    x = X.astype(jnp.bfloat16)
    for rule in (BACK, DIRECT, mbp.SignSymmetry(), mbp.QuantizedErrors()):
        feedback = rule.init(jax.random.key(1), params, x, network=MLP)
        given = {"transport": rule, "feedback": feedback, "network": MLP}
        step = mbp.transported_pass(params, x, Y, **given)
        assert {leaf.dtype for leaf in jax.tree.leaves(step.grads)} == {jnp.bfloat16.dtype}
        assert {leaf.dtype for leaf in jax.tree.leaves(step.angles)} == {np.dtype(np.float32)}
        assert {leaf.dtype for leaf in jax.tree.leaves(feedback)} <= {jnp.bfloat16.dtype}


@dataclass(frozen=True)
class Halved(mbp.Transport):
    """A rule of somebody's own."""

    def backward(self, layer, params, residuals, dout, carried):
        dparams, dx = layer.backward(params, residuals, dout)
        return dparams, dx / 2


@dataclass(frozen=True)
class Unknown(mbp.Dense):
    """A layer of somebody's own."""


def test_a_rule_and_a_layer_of_ones_own():
    step = mbp.transported_pass(PARAMS, X, Y, transport=Halved(), network=MLP)
    equal(step.grads[0], jax.tree.map(lambda each: each / 2, step.true_grads[0]))
    network = mbp.sequential(mbp.Dense(5, mbp.tanh), Unknown(3))
    with pytest.raises(TypeError, match=r"in layer 2, Unknown\(3\): how an error .*MATRICES"):
        mbp.transported_pass(PARAMS, X, Y, transport=Halved(), network=network)
    MATRICES[Unknown] = ("W",)
    try:
        mine = mbp.transported_pass(PARAMS, X, Y, transport=Halved(), network=network)
    finally:
        del MATRICES[Unknown]
    equal(mine.grads, step.grads)


# --- what is refused ------------------------------------------------------------------------

FEEDBACK = BACK.init(jax.random.key(1), PARAMS, X, network=MLP)
DEEPER = mbp.mlp([4, 5, 5, 3])
OF_DEEPER = BACK.init(jax.random.key(1), DEEPER.init(jax.random.key(0), X), X, network=DEEPER)
HEAD = mbp.LinearCrossEntropy(3)
STOCHASTIC = mbp.QuantizedErrors(stochastic=True)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"transport": BACK}, TypeError, "takes feedback. Make it once, feedback = transport.init"),
        ({"transport": Halved(), "feedback": FEEDBACK}, TypeError, "takes no feedback: leave it"),
        ({"transport": STOCHASTIC}, TypeError, "takes transport_key. Give jax.random.key"),
        ({"transport": mbp.FeedbackAlignment}, TypeError, "must be a rule such as .* Call it."),
        (
            {"transport": BACK, "feedback": OF_DEEPER},
            ValueError,
            "nested like the network, a tuple of 2, got a tuple of 3",
        ),
        (
            {"transport": BACK, "feedback": (FEEDBACK[0], ())},
            ValueError,
            r"in layer 2, Dense\(3, inputs=5\): feedback has no W",
        ),
        (
            {"transport": BACK, "feedback": FEEDBACK[::-1]},
            ValueError,
            r"in layer 2, Dense\(3, inputs=5\): feedback has W of shape \(5, 4\), expected",
        ),
        (
            {"transport": DIRECT, "feedback": FEEDBACK},
            ValueError,
            r"in layer 1, .* feedback has shape \(5, 4\), expected \(3, 4\): from the first error",
        ),
    ],
)
def test_what_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        mbp.transported_pass(PARAMS, X, Y, network=MLP, **given)


def test_a_loss_that_holds_the_last_layer_is_refused():
    body = mbp.Dense(5, mbp.tanh)
    params = PARAMS[0], HEAD.init(jax.random.key(0), jnp.ones((6, 5)))
    with pytest.raises(TypeError, match=r"LinearCrossEntropy\(3\) holds the last layer: .* Dense"):
        mbp.transported_pass(params, X, Y, transport=Halved(), network=body, loss=HEAD)
    shared = mbp.LinearCrossEntropy(5, shared=(0, "W"))
    network = mbp.sequential(mbp.Dense(5, mbp.tanh), mbp.Dense(4))
    params = network.init(jax.random.key(0), X)
    with pytest.raises(TypeError, match="holds the last layer"):
        mbp.transported_pass(params, X, Y, transport=Halved(), network=network, loss=shared)


def test_feedback_for_params_of_another_network_is_refused():
    with pytest.raises(ValueError, match="params aren't nested as sequential"):
        BACK.init(jax.random.key(1), PARAMS, X, network=DEEPER)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mbp.QuantizedErrors(8.0), TypeError, "bits must be an int, got 8.0"),
        (lambda: mbp.QuantizedErrors(1), ValueError, "bits must be from 2 to 16, got 1"),
        (lambda: mbp.QuantizedErrors(stochastic=1), TypeError, "stochastic must be True or False"),
        (lambda: mbp.NoisyErrors(-0.1), ValueError, "scale must be 0 or a positive number"),
        (lambda: mbp.NoisyErrors("much"), TypeError, "scale must be 0 or a positive number"),
    ],
)
def test_settings_are_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()
