"""Our rules under jax.grad: what the matrix of verify/interop doesn't say, and that it can fail."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import manual_bp as mbp
from manual_bp.interop import as_function, as_loss, attaching, elementwise, functions
from manual_bp.layers import (
    batch_norm,
    conv,
    dense,
    embedding,
    group_norm,
    layer_norm,
    rms_norm,
    rnn,
)
from manual_bp.losses import linear_cross_entropy
from verify.interop import contexts, stage
from verify.interop.rows import every_row
from verify.judges import same
from verify.report import Report

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3))
ROWS = {row.family: row for row in every_row()}


# --- as_function ----------------------------------------------------------------------------


def test_equal_layers_have_one_function():
    assert as_function(mbp.Dense(3)) is as_function(mbp.Dense(3))
    assert as_function(mbp.Dense(3)) is not as_function(mbp.Dense(4))
    assert as_loss(mbp.Huber()) is as_loss(mbp.Huber())
    assert elementwise(mbp.leaky_relu(0.2)) is elementwise(mbp.leaky_relu(0.2))


def test_a_chain_of_dense_layers_takes_params_as_the_notes_have_them():
    f = as_function(mbp.mlp([3, 5, 2], hidden=mbp.tanh))
    params = [{"W": RNG.normal(size=(5, 3)), "b": np.ones(5)}, (np.ones((2, 5)), np.ones(2))]

    def plain(params):
        a = jnp.tanh(X @ params[0]["W"].T + params[0]["b"])
        return a @ params[1][0].T + params[1][1]

    ours = lambda params: jax.grad(lambda params: (f(params, X) ** 2).sum())(params)  # noqa: E731
    theirs = lambda params: jax.grad(lambda params: (plain(params) ** 2).sum())(params)  # noqa: E731
    assert same(ours, theirs, params).ok


def test_observed_statistics_are_constants():
    f = as_function(mbp.BatchNorm(), observes=True)
    params = batch_norm.Params(jnp.ones(3), jnp.zeros(3))
    out, observed = f(params, jnp.asarray(X))
    assert out.shape == X.shape
    np.testing.assert_array_equal(observed.mean, jnp.asarray(X).mean(0))
    grads = jax.grad(lambda x: sum(each.sum() for each in f(params, x)[1]))(jnp.asarray(X))
    np.testing.assert_array_equal(grads, 0)


def test_a_state_of_none_has_no_gradient_and_one_that_is_given_has():
    layer = mbp.GRU(2, stateful=True)
    x, h = jnp.ones((2, 3, 1)), jnp.ones((2, 2))
    f, params = as_function(layer), layer.init(jax.random.key(0), x)
    assert jax.grad(lambda params: f(params, x, state=None).sum())(params).W.shape == (6, 1)
    assert jax.grad(lambda h: f(params, x, state=h).sum())(h).shape == h.shape


def test_weights_of_cross_entropy_have_a_gradient_which_are_the_values():
    h, W = jnp.asarray(X), jnp.ones((5, 3))
    labels, weights = jnp.array([0, 4, 2, 2]), jnp.ones(4)
    J = lambda weights: functions.linear_cross_entropy(h, W, labels, weights=weights)  # noqa: E731
    np.testing.assert_array_equal(
        jax.grad(J)(weights),
        as_loss(mbp.LinearCrossEntropy(5))(h, labels, linear_cross_entropy.Params(W, ())),
    )


@pytest.mark.parametrize("name", ["SquaredError", "Huber", "softmax_cross_entropy"])
def test_what_a_weight_changes_at_0_is_the_error(name):
    Z, Y, V = (RNG.normal(size=(3, 4)) for _ in range(3))
    classes = np.array([1, 0, 3])
    f, plain, target = {
        "SquaredError": (as_loss(mbp.SquaredError()), lambda z, y: ((z - y) ** 2).sum(-1) / 2, Y),
        "Huber": (as_loss(mbp.Huber()), lambda z, y: optax.huber_loss(z, y).sum(-1), Y),
        "softmax_cross_entropy": (
            functions.softmax_cross_entropy,
            optax.softmax_cross_entropy_with_integer_labels,
            classes,
        ),
    }[name]

    def mixed(f):
        along = lambda w, z: (jax.grad(lambda z: (w * f(z, target)).sum())(z) * V).sum()  # noqa: E731
        return lambda z: jax.grad(along)(jnp.zeros(3, z.dtype), z)

    assert same(mixed(f), mixed(plain), Z).ok


def test_an_error_that_is_not_finite_counts_for_nothing_at_weight_0():
    z = jnp.array([[jnp.nan, 1.0], [1.0, 2.0]])
    f = as_loss(mbp.SquaredError())
    dz = jax.grad(lambda z: (jnp.array([0.0, 1.0]) * f(z, jnp.zeros((2, 2)))).sum())(z)
    np.testing.assert_array_equal(dz, [[0, 0], [1, 2]])
    h, W, w = jnp.asarray(X), jnp.ones((5, 3)), jnp.array([0.0, 1.0, 1.0, 1.0])
    J = lambda w: functions.linear_cross_entropy(h, W, jnp.array([7, 0, 1, 2]), weights=w)  # noqa: E731
    assert jax.jit(jax.grad(J))(w)[0] == 0


def test_scaling_the_loss_keeps_small_gradients_of_float16():
    m = 65536
    h = jnp.asarray(RNG.normal(size=(m, 4)), jnp.float16)
    W = jnp.asarray(RNG.normal(size=(8, 4)) / 50, jnp.float16)
    labels = jnp.arange(m) % 8
    scaled = lambda h: 2.0**15 * functions.linear_cross_entropy(h, W, labels)  # noqa: E731
    dh = jax.jit(jax.grad(scaled))(h)
    assert dh.dtype == jnp.float16
    assert (dh != 0).mean() > 0.999  # for dJ = 1 and weights of 1/m, most would be 0


def test_a_gradient_of_what_was_made_before_the_mesh():
    mesh = jax.make_mesh((1,), ("data",))
    W = jnp.ones((4, 3))
    with jax.set_mesh(mesh):
        dW = jax.grad(lambda W: functions.dense(np.ones((2, 3), np.float32), W).sum())(W)
    np.testing.assert_array_equal(dW, 2 * np.ones((4, 3)))


def test_softmax_of_one_vector():
    np.testing.assert_array_equal(functions.softmax(jnp.zeros(4)), np.full(4, 0.25))
    np.testing.assert_array_equal(functions.log_softmax(jnp.zeros(1)), [0])


# --- what can't be had is said ---------------------------------------------------------------


def test_forward_mode_over_a_layer_is_an_error():
    f, params = as_function(mbp.Dense(2)), mbp.Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: f(params, x), (jnp.ones((1, 3)),), (jnp.ones((1, 3)),))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: as_function(jnp.tanh), "as_function takes a layer or network, got "),
        (lambda: as_function(mbp.Huber()), r"For a loss use as_loss\(loss\)\."),
        (lambda: as_loss(mbp.Huber), r"as_loss takes a Loss such as .* Call it\."),
        (lambda: elementwise(jnp.tanh), "activation must be an activation of manual_bp, got "),
        (lambda: functions.relu(jnp.arange(3)), "relu takes floating-point inputs, got int32"),
        (
            lambda: as_function(mbp.Dense(2))((), np.ones((1, 3)), key=1),
            "takes nothing beside params and x, but was given key",
        ),
        (
            lambda: jax.grad(lambda y: as_loss(mbp.SquaredError())(X, y).sum())(X),
            r"SquaredError\(\): the target has no hand-derived gradient, and one was asked for\. "
            r"Hold it constant with jax\.lax\.stop_gradient",
        ),
        (
            lambda: jax.grad(
                lambda s: as_function(mbp.BatchNorm().inference())(
                    batch_norm.Params(np.ones(3), np.zeros(3)), X, statistics=s
                ).sum()
            )(batch_norm.Statistics(np.zeros(3), np.ones(3))),
            r"FrozenBatchNorm\(\): statistics has no hand-derived gradient, and one was asked for",
        ),
        (
            lambda: functions.linear_cross_entropy(X[:0], X, np.zeros(0, int)),
            r"labels have shape \(0,\), expected at least one",
        ),
        (
            lambda: functions.embedding(np.array([7]), np.ones((3, 2))),
            "token 7",
        ),
    ],
)
def test_what_is_wrong_is_said(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


Q = np.ones((2, 3, 4, 2), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": Q[0]}, r"q has shape \(3, 4, 2\), expected \(m, T, heads, d\)\. .* write q\[None\]"),
        ({"k": Q.astype(int)}, "k must be floating-point, got int"),
        ({"k": Q[:, :, :3], "v": Q[:, :, :3]}, "heads a multiple of kv_heads"),
        ({"v": Q[:, :2]}, r"q, k and v have shapes .* expected \(m, T, heads, d\)"),
        ({"mask": np.ones((2, 1, 3, 2), bool)}, r"mask has shape \(2, 1, 3, 2\), expected \(2, 4"),
        ({"mask": np.ones((2, 1, 3, 3))}, "mask must be an array of booleans, .* got float64"),
        ({"key_mask": np.ones((3,), bool)}, r"key_mask has shape \(3,\), expected \(2, 3\)"),
        ({"window": 2}, "window counts positions back: it needs causal=True"),
        ({"q": Q[:, :0]}, "no axis but the examples' may be empty"),
        ({"block": 0}, "block must be a positive int, got 0"),
        ({"scale": -1.0}, "scale must be a positive number"),
        ({"soft_cap": "a"}, "soft_cap must be a positive number"),
    ],
)
def test_attention_says_what_is_wrong(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        functions.attention(**{"q": Q, "k": Q, "v": Q, **change})


# --- functional forms ------------------------------------------------------------------------

IMAGES, SEQUENCE = RNG.normal(size=(2, 5, 6, 4)), RNG.normal(size=(2, 3, 4))
C = RNG.normal(size=(2, 4))
KERNEL, W = RNG.normal(size=(3, 2, 4, 2)), RNG.normal(size=(8, 4))
FORMS = {
    "dense": (
        lambda W, b, x: functions.dense(x, W, b, activation=mbp.tanh),
        lambda W, b, x: mbp.Dense(8, mbp.tanh).forward(dense.Params(W, b), x)[0],
        (W, np.ones(8), SEQUENCE),
    ),
    "dense without b": (
        lambda W, x: functions.dense(x, W),
        lambda W, x: x @ W.T,
        (W, SEQUENCE),
    ),
    "conv": (
        lambda W, b, x: functions.conv(x, W, b, stride=2, padding="VALID", groups=1),
        lambda W, b, x: mbp.Conv(2, (3, 2), stride=2, padding="VALID").forward(
            conv.Params(W, b), x
        )[0],
        (KERNEL, np.ones(2), IMAGES),
    ),
    "layer_norm": (
        lambda s, b, x: functions.layer_norm(x, s, b, eps=0.1),
        lambda s, b, x: mbp.LayerNorm(0.1).forward(layer_norm.Params(s, b), x)[0],
        (C[0], C[1], SEQUENCE),
    ),
    "layer_norm alone": (
        functions.layer_norm,
        lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5),
        (SEQUENCE,),
    ),
    "rms_norm": (
        lambda s, x: functions.rms_norm(x, s, eps=0.1),
        lambda s, x: mbp.RMSNorm(0.1).forward(rms_norm.Params(s), x)[0],
        (C[0], SEQUENCE),
    ),
    "group_norm": (
        lambda s, b, x: functions.group_norm(x, 2, s, b, eps=0.1),
        lambda s, b, x: mbp.GroupNorm(2, 0.1).forward(group_norm.Params(s, b), x)[0],
        (C[0], C[1], IMAGES),
    ),
    "batch_norm": (
        lambda s, b, x: functions.batch_norm(x, s, b, eps=0.1)[0],
        lambda s, b, x: mbp.BatchNorm(0.1).forward(batch_norm.Params(s, b), x)[0],
        (C[0], C[1], SEQUENCE),
    ),
    "embedding": (
        lambda W: functions.embedding(np.array([[0, 2], [7, 7]]), W),
        lambda W: mbp.Embedding(8, 4).forward(embedding.Params(W), jnp.array([[0, 2], [7, 7]]))[0],
        (W,),
    ),
    "max_pool": (
        lambda x: functions.max_pool(x, (2, 3), stride=2),
        lambda x: mbp.MaxPool((2, 3), stride=2).forward((), x)[0],
        (IMAGES,),
    ),
    "avg_pool": (
        lambda x: functions.avg_pool(x, (2, 2), padding="SAME", count_padding=False),
        lambda x: mbp.AvgPool((2, 2), padding="SAME", count_padding=False).forward((), x)[0],
        (IMAGES,),
    ),
    "softmax": (
        lambda x: functions.softmax(x, axis=-2),
        lambda x: jax.nn.softmax(x, -2),
        (SEQUENCE,),
    ),
    "log_softmax": (functions.log_softmax, jax.nn.log_softmax, (SEQUENCE,)),
    "softmax_cross_entropy": (
        lambda z: functions.softmax_cross_entropy(
            z, np.array([[0, 3, 1], [1, 1, -1]]), ignored_class=-1
        ),
        lambda z: (
            -jnp.where(
                np.array([[1, 1, 1], [1, 1, 0]]) == 1,
                jnp.take_along_axis(
                    jax.nn.log_softmax(z), np.array([[[0], [3], [1]], [[1], [1], [0]]]), -1
                )[..., 0],
                0,
            )
        ),
        (SEQUENCE,),
    ),
    "rnn": (
        lambda W, U, x: functions.rnn(x, W, U, np.zeros(8), reverse=True),
        lambda W, U, x: mbp.RNN(8, reverse=True).forward(rnn.Params(W, U, np.zeros(8)), x)[0],
        (W, RNG.normal(size=(8, 8)), SEQUENCE),
    ),
    "lstm": (
        lambda W, U, h, c, x: functions.lstm(x, W, U, np.ones(8), state=(h, c)),
        lambda W, U, h, c, x: _lstm(W, U, h, c, x),
        (W, RNG.normal(size=(8, 2)), np.ones((2, 2)), RNG.normal(size=(2, 2)), SEQUENCE),
    ),
    "gru": (
        lambda U, x: functions.gru(x, U[:, :4], U, np.ones(12), np.ones(4), mask=MASK),
        lambda U, x: _gru(U, x),
        (RNG.normal(size=(12, 4)), SEQUENCE),
    ),
}
MASK = np.array([[True, True, False], [True, True, True]])


def _lstm(W, U, h, c, x):
    outputs = []
    for x_t in jnp.swapaxes(x, 0, 1):
        i, f, g, o = jnp.split(x_t @ W.T + h @ U.T + 1, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        outputs.append(h)
    return jnp.stack(outputs, 1)


def _gru(U, x):
    h, outputs = jnp.zeros((2, 4), x.dtype), []
    for x_t, real in zip(jnp.swapaxes(x, 0, 1), MASK.T[..., None], strict=True):
        (p_r, p_z, p_n), (q_r, q_z, q_n) = (
            jnp.split(each, 3, axis=-1) for each in (x_t @ U.T + 1, h @ U.T)
        )
        n = jnp.tanh(p_n + jax.nn.sigmoid(p_r + q_r) * (q_n + 1))
        z = jax.nn.sigmoid(p_z + q_z)
        h = jnp.where(real, (1 - z) * n + z * h, h)
        outputs.append(h)
    return jnp.stack(outputs, 1)


@pytest.mark.parametrize("name", FORMS)
def test_functional_forms_are_their_layers(name):
    ours, theirs, args = FORMS[name]

    def gradients(f):
        def run(*args):
            out, pull = jax.vjp(f, *args)
            weights = np.resize([1.0, -0.5, 2.0, 0.25, -1.5], out.size).reshape(out.shape)
            return {"out": out, "d": pull(jnp.asarray(weights, out.dtype))}

        return run

    verdict = same(gradients(ours), gradients(theirs), *args)
    assert verdict.ok, verdict


def test_every_activation_of_the_table_has_its_function():
    table = [name for name in vars(mbp) if isinstance(vars(mbp)[name], mbp.layer.Layer)]
    families = ["celu", "elu", "leaky_relu", "squareplus"]
    for name in {*table, *families} - {"identity"}:
        assert callable(getattr(functions, name)), name
    z = np.array([-1.5, 0.5])
    np.testing.assert_array_equal(
        functions.elu(z, 2.0), mbp.elu(2.0).forward((), jnp.asarray(z))[0]
    )


# --- the matrix can fail -----------------------------------------------------------------------


@pytest.mark.parametrize("context", contexts.CONTEXTS)
def test_a_wrong_rule_fails_in_every_context(context):
    row = ROWS["LayerNorm"]
    assert contexts.judge(row, context).ok
    right = row.theirs

    def wrong(d, c):
        pair = attaching.attached(
            lambda d, c: (right(d, c), (d, c)),
            lambda kept, dout: (
                jax.tree.map(lambda leaf: leaf * (1 + 1e-9), jax.vjp(right, *kept)[1](dout)[0]),
                None,
            ),
        )
        return pair(d, c)

    assert not contexts.judge(dataclasses.replace(row, ours=wrong), context).ok


def test_the_matrix_of_one_rule():
    report = Report(Console(quiet=True))
    stage.run(report, families=["LinearRecurrence"])
    assert report.held, report.failures
    assert {"vmap(grad)", "Explicit mesh", "shard_map", "two processes"} <= set(report.levels)
    assert all(level.counts["LinearRecurrence"] == 1 for level in report.levels.values())


def test_a_worker_that_ends_early_is_a_failure():
    report = Report(Console(quiet=True))
    with stage.worker_of("a worker", ["--nonsense"]) as worker:
        stage.gather(report, [worker], lambda note: None)
    assert not report.held
    assert "a worker ended with status 2: " in report.failures[0]
