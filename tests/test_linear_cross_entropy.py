"""LinearCrossEntropy beside the plain composition, and what no spec says of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_bp as mbp
from manual_bp.losses.linear_cross_entropy import LinearCrossEntropy, Params
from verify import judges

RNG = np.random.default_rng(3)
H = RNG.normal(size=(7, 4)).astype(np.float32)
W = RNG.normal(size=(13, 4)).astype(np.float32)
CLASSES = RNG.integers(0, 13, size=7)
WEIGHTS = RNG.normal(size=7).astype(np.float32)


def same(ours, theirs, *args):
    verdict = judges.same(ours, theirs, *args)
    assert verdict.ok, verdict


def plain(W, h, y):
    """Values by optax, all logits at once."""
    return optax.softmax_cross_entropy(h @ W.T, jax.nn.one_hot(y, len(W)))


def swept(loss):
    """(values, dW, dh) as a function of W, h, classes and weights."""

    def run(W, h, y, w):
        values, dparams, dh = loss.sweep(Params(W, ()), h, y, w)
        return values, dparams.W, dh

    return run


def by_autodiff(W, h, y, w):
    def total(W, h):
        values = plain(W, h, y)
        return (w * values).sum(), values

    (dW, dh), values = jax.grad(total, (0, 1), has_aux=True)(W, h)
    return values, dW, dh


# --- beside the plain composition ------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 7])
@pytest.mark.parametrize("chunk", [None, 1, 2, 3, 5, 7, 8])
def test_chunks_of_any_size_give_the_values_and_gradients_of_optax(count, chunk):
    loss = LinearCrossEntropy(13, chunk=chunk)
    same(swept(loss), by_autodiff, W, H[:count], CLASSES[:count], WEIGHTS[:count])


@pytest.mark.parametrize("count", [1, 64, 100, 129])
def test_chunks_are_filled_and_no_prediction_is_counted_twice(count):
    """Against the values of one chunk: at weight 1 and W = 0 all sums are exact."""
    loss = LinearCrossEntropy(2, chunk=64)
    values, dW, dh = swept(loss)(
        jnp.zeros((2, 1)), jnp.ones((count, 1)), jnp.zeros(count, int), 1.0 * jnp.ones(count)
    )
    np.testing.assert_array_equal(values, jnp.full(count, jnp.log(2.0)))
    np.testing.assert_array_equal(dW, [[-count / 2], [count / 2]])
    np.testing.assert_array_equal(dh, jnp.zeros((count, 1)))


@pytest.mark.parametrize("smoothing", [0.0, 0.125])
@pytest.mark.parametrize("ignored", [None, 2, -1])
def test_it_is_a_dense_layer_below_softmax_cross_entropy(smoothing, ignored):
    hidden = mbp.Dense(4, mbp.tanh)
    x = RNG.normal(size=(2, 3, 5)).astype(np.float32)
    y = np.where(np.arange(6).reshape(2, 3) == 4, 0 if ignored is None else ignored, 2)
    y[0] = [0, 1, 2]
    composed, features = mbp.sequential(hidden, mbp.Dense(3)), mbp.sequential(hidden)
    settings = {"label_smoothing": smoothing, "ignored_class": ignored}
    first, (w, b) = composed.init(jax.random.key(0), x)
    b = b + jnp.arange(3)

    def fused(first, w, b):
        loss = LinearCrossEntropy(3, chunk=4, bias=True, **settings)
        value, (grads, own) = mbp.manual_value_and_grads(
            ((first,), Params(w, b)), x, y, network=features, loss=loss
        )
        return value, grads[0], own.W, own.b

    def apart(first, w, b):
        loss = mbp.SoftmaxCrossEntropy(**settings)
        value, (grads, last) = mbp.manual_value_and_grads(
            (first, mbp.layers.dense.Params(w, b)), x, y, network=composed, loss=loss
        )
        return value, grads, last.W, last.b

    same(fused, apart, first, w, b)
    counts = LinearCrossEntropy(3, **settings).counts(x, y)
    expected = mbp.SoftmaxCrossEntropy(**settings).counts(x[..., :3], y)
    np.testing.assert_equal(counts, expected)


def test_z_loss_and_soft_cap_are_what_they_are_in_the_papers():
    def composed(W, h, y, w):
        def total(W, h):
            z = 3.0 * jnp.tanh(h @ W.T / 3.0)
            values = optax.softmax_cross_entropy(z, jax.nn.one_hot(y, len(W)))
            values = values + 0.25 * jax.nn.logsumexp(z, -1) ** 2
            return (w * values).sum(), values

        (dW, dh), values = jax.grad(total, (0, 1), has_aux=True)(W, h)
        return values, dW, dh

    loss = LinearCrossEntropy(13, chunk=3, soft_cap=3.0, z_loss=0.25)
    same(swept(loss), composed, W, H, CLASSES, WEIGHTS)
    logits = lambda W, h: loss.logits(Params(W, ()), h)  # noqa: E731
    same(logits, lambda W, h: 3.0 * jnp.tanh(h @ W.T / 3.0), W, H)


# --- memory -----------------------------------------------------------------------------------


def sizes(jaxpr):
    """The sizes of all values in a jaxpr, those of inner ones too."""
    for equation in jaxpr.eqns:
        yield from (int(np.prod(out.aval.shape)) for out in equation.outvars)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from sizes(getattr(inner, "jaxpr", inner))


def test_no_value_has_the_size_of_all_logits():
    count, classes, chunk = 320, 1000, 64
    args = (
        jnp.zeros((classes, 8)),
        jnp.zeros((count, 8)),
        jnp.zeros(count, int),
        jnp.ones(count),
    )
    ours = jax.make_jaxpr(swept(LinearCrossEntropy(classes, chunk=chunk)))(*args)
    assert max(sizes(ours.jaxpr)) == chunk * classes
    theirs = jax.make_jaxpr(by_autodiff)(*args)
    assert max(sizes(theirs.jaxpr)) == count * classes


@pytest.mark.parametrize(
    ("classes", "count", "size"),
    [(32_768, 1024, 128), (50_257, 1024, 64), (10**6, 1024, 64), (65, 1024, 1024), (32_768, 1, 1)],
)
def test_a_chunk_s_logits_take_16_mib_unless_they_would_be_of_fewer_than_64(classes, count, size):
    assert LinearCrossEntropy(classes)._predictions(count) == size


@pytest.mark.parametrize(
    ("classes", "count", "blocks"),
    [(32_768, 1, 128), (32_768, 8, 128), (10**6, 1, 3907), (1000, 1, 8), (19, 3, 10), (4, 2, 4)],
)
def test_few_predictions_go_through_large_blocks_of_classes(classes, count, blocks):
    size = LinearCrossEntropy(classes)._block(count, 512)
    assert -(-classes // size) == blocks


def test_under_jit_values_alone_take_one_product():
    loss = LinearCrossEntropy(50, chunk=3, z_loss=0.125)

    def products(wanted):
        run = jax.jit(lambda *args: wanted(swept(loss)(*args)))
        text = run.lower(W[[0] * 50], H, CLASSES, WEIGHTS).compile().as_text()
        return str(text).count(" dot(")

    assert products(lambda swept: swept[0]) == 1
    assert products(lambda swept: swept) == 3


# --- a shared W -------------------------------------------------------------------------------


def test_a_shared_w_has_the_sum_of_both_gradients_and_params_are_the_networks():
    network = mbp.sequential(mbp.Dense(4, mbp.tanh), mbp.Dense(4))
    loss = LinearCrossEntropy(4, chunk=3, shared=(0, "W"))
    params = network.init(jax.random.key(0), H)
    y = CLASSES % 4
    assert loss.init(jax.random.key(0), H) == ()

    def objective(params, x):
        (W1, b1), (W2, b2) = params
        h = jnp.tanh(x @ W1.T + b1) @ W2.T + b2
        return plain(W1, h, y).mean()

    ours = functools.partial(mbp.manual_value_and_grads, y=y, network=network, loss=loss)
    same(ours, jax.value_and_grad(objective), params, H)
    apart = LinearCrossEntropy(4, chunk=3)
    own, of_the_loss = mbp.manual_grads(
        (params, Params(params[0].W, ())), H, y, network=network, loss=apart
    )
    _, grads = ours(params, H)
    np.testing.assert_array_equal(grads[0].W, own[0].W + of_the_loss.W)
    np.testing.assert_array_equal(grads[1].W, own[1].W)
    # The notes' params may be written otherwise; the path is that of the network's own.
    written = [{"W": pair.W, "b": pair.b} for pair in params]
    again = mbp.manual_grads(written, H, y, network=network, loss=loss)
    jax.tree.map(np.testing.assert_array_equal, again, [pair._asdict() for pair in grads])


def test_intermediates_name_the_loss_s_own_gradients_and_show_sums_where_it_shares():
    network = mbp.sequential(mbp.Dense(4, mbp.tanh))
    params = network.init(jax.random.key(0), H)
    settings = {"network": network, "weights": WEIGHTS}
    head = Params(W, jnp.zeros(13))
    loss = LinearCrossEntropy(13, chunk=3, bias=True)
    steps = mbp.intermediates((params, head), H, CLASSES, loss=loss, **settings)
    _, own = mbp.manual_grads((params, head), H, CLASSES, loss=loss, **settings)
    np.testing.assert_array_equal(steps["dW of the loss"], own.W)
    np.testing.assert_array_equal(steps["db of the loss"], own.b)
    shared = LinearCrossEntropy(4, shared=(0, "W"))
    steps = mbp.intermediates(params, H, CLASSES % 4, loss=shared, **settings)
    (pair,) = mbp.manual_grads(params, H, CLASSES % 4, loss=shared, **settings)
    np.testing.assert_array_equal(steps["dW1"], pair.W)
    assert not any("loss" in name for name in steps)


# --- inside the caller's jit, vmap and scan ------------------------------------------------------


def test_it_runs_inside_jit_vmap_and_scan():
    run = swept(LinearCrossEntropy(13, chunk=3))
    hs, ys, ws = (np.stack([each, each[::-1]]) for each in (H, CLASSES, WEIGHTS))

    def scanned(hs, ys, ws):
        step = lambda carry, each: (carry, run(W, *each))  # noqa: E731
        return jax.lax.scan(step, 0, (hs, ys, ws))[1]

    def one_by_one(hs, ys, ws):
        return jax.tree.map(lambda *each: jnp.stack(each), *map(by_autodiff, (W, W), hs, ys, ws))

    same(lambda *each: jax.vmap(run, (None, 0, 0, 0))(W, *each), one_by_one, hs, ys, ws)
    same(scanned, one_by_one, hs, ys, ws)
    same(
        lambda *each: jax.jit(run)(W, *each), functools.partial(by_autodiff, W), H, CLASSES, WEIGHTS
    )


@pytest.mark.parametrize("wrong", [-1, 13])
def test_inside_jit_a_class_that_does_not_exist_is_nan_unless_its_weight_is_0(wrong):
    run = jax.jit(swept(LinearCrossEntropy(13, chunk=3)))
    y = CLASSES.copy()
    y[2] = wrong
    values, dW, dh = run(W, H, y, WEIGHTS)
    np.testing.assert_array_equal(np.isnan(values), np.arange(7) == 2)
    assert np.isnan(dW).all()
    np.testing.assert_array_equal(np.isnan(dh), np.arange(7)[:, None] == [[2] * 4])
    weights = np.where(np.arange(7) == 2, 0, WEIGHTS)
    _, *expected = run(W, H, CLASSES, weights)
    spoilt = np.where(np.arange(7)[:, None] == 2, np.nan, H)
    for h in (H, spoilt):
        _, *found = run(W, h, y, weights)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_ignored_tokens_have_value_and_gradient_0_whatever_is_there(chunk):
    run = swept(LinearCrossEntropy(13, chunk=chunk, ignored_class=-1, label_smoothing=0.125))
    y = np.where(np.arange(7) % 3 == 1, -1, CLASSES)
    spoilt = np.where(y[:, None] == -1, np.inf, H)
    values, dW, dh = run(W, spoilt, y, WEIGHTS)
    np.testing.assert_array_equal(values[y == -1], 0)
    np.testing.assert_array_equal(dh[y == -1], 0)
    np.testing.assert_array_equal(dW, run(W, H, y, WEIGHTS)[1])


# --- half precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_sums_over_predictions_in_float32(dtype):
    """1024 errors of ∓1/2 are summed exactly; bfloat16 holds no odd number above 256."""
    loss = LinearCrossEntropy(2, chunk=8)
    args = (jnp.zeros((2, 1), dtype), jnp.ones((1028, 1), dtype), jnp.zeros(1028, int))
    values, dW, dh = swept(loss)(*args, jnp.ones(1028))
    assert values.dtype == jnp.float32 and dW.dtype == dh.dtype == dtype
    np.testing.assert_array_equal(dW, jnp.asarray([[-514.0], [514.0]], dtype))
    np.testing.assert_array_equal(values, jnp.full(1028, jnp.log(2.0)))
