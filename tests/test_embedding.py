"""Tokens and positions: what no spec says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import manual_bp as mbp
from manual_bp.layers import embedding
from manual_bp.layers._rotary import rotate
from verify import interpreter, rules
from verify.arithmetic.rounding import unit_roundoff
from verify.judges import rational, same
from verify.levels import agreement

NETWORK = mbp.sequential(mbp.Embedding(5, 3), mbp.Dense(4))
TOKENS = jnp.array([[0, 4, 4], [2, 0, 4]])
PARAMS = NETWORK.init(jax.random.key(0), TOKENS)
Y = jnp.array([[0, 1, 2], [3, 3, 1]])
FORMS = (embedding.add_in_order, embedding.add_by_sorting)


def value_and_grads(tokens, **settings):
    return mbp.manual_value_and_grads(PARAMS, tokens, Y, network=NETWORK, **settings)


# --- tokens that don't exist ----------------------------------------------------------------


@pytest.mark.parametrize("token", [-1, 5, -6, 2**31 - 1, -(2**31)])
def test_in_a_program_a_token_that_does_not_exist_makes_loss_and_gradient_nan(token):
    loss, grads = jax.jit(value_and_grads)(TOKENS.at[1, 1].set(token))
    assert np.isnan(loss)
    assert np.isnan(grads[0].W).all()
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("dtype", "token"), [(jnp.int8, -1), (jnp.uint8, 255), (jnp.uint32, 2**31)]
)
def test_narrow_and_unsigned_tokens_are_no_others(dtype, token):
    layer = mbp.Embedding(200, 2)  # more than an int8 counts
    params = layer.init(jax.random.key(0), TOKENS)
    x = jnp.array([0, token], jnp.uint32 if token > 0 else jnp.int32).astype(dtype)
    out, residuals = layer.forward(params, x)
    assert np.isfinite(out[0]).all()
    assert np.isnan(out[1]).all()
    assert np.isnan(layer.backward(params, residuals, jnp.ones_like(out))[0].W).all()
    assert np.asarray(layer.readable(x)).tolist() == [True, False]


def test_predictions_of_a_token_that_does_not_exist_are_nan_and_no_others():
    found = jax.jit(lambda x: mbp.predict(PARAMS, x, network=NETWORK))(TOKENS.at[0, 1].set(-1))
    assert np.isnan(found).all(-1).tolist() == [[False, True, False], [False] * 3]


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["outside", "inside"])
def test_examples_of_weight_0_may_hold_anything(run):
    weights = jnp.array([[0.5, 0.0, 0.5], [0.0, 0.25, 0.0]])
    step = run(lambda tokens: value_and_grads(tokens, weights=weights))
    padded = step(jnp.where(weights == 0, -1, TOKENS))
    other = step(jnp.where(weights == 0, 3, TOKENS))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(padded))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), padded, other))
    with pytest.raises(ValueError, match=r"token -1 at x\[0, 0\]"):
        value_and_grads(jnp.full((2, 3), -1), weights=weights)


def test_tokens_have_no_gradient():
    dx = mbp.manual_pass(PARAMS, TOKENS, Y, network=NETWORK).dx
    assert (dx.dtype, dx.shape) == (jax.dtypes.float0, (2, 3))


# --- the sum over places --------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_both_forms_of_the_sum_are_one_function(form):
    rng = np.random.default_rng(0)
    for count, vocabulary in ((1, 1), (1, 3), (2, 1), (7, 3), (12, 4), (5, 20)):
        tokens = rng.integers(-1, vocabulary + 1, size=count)
        each = rng.normal(size=(count, 2))
        one_hot = (tokens[:, None] == np.arange(vocabulary)) * 1.0
        assert same(
            lambda each, t=tokens, v=vocabulary: form(jnp.zeros((v, 2)), jnp.asarray(t), each),
            lambda each, h=one_hot: jnp.einsum("nv,nf->vf", h, each),
            each,
            judge=rational,
        ).ok


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "vocabulary"),
    [("uint8", 256), ("uint8", 300), ("int8", 128), ("int8", 300), ("uint16", 65536)],
)
def test_a_row_that_narrow_tokens_cannot_count_to_gets_nothing(form, dtype, vocabulary):
    last = min(vocabulary - 1, jnp.iinfo(dtype).max)
    tokens = np.array([0, last, 3, 0, 0, 44, 3, last], dtype)
    each = 2.0 ** np.arange(16).reshape(8, 2)  # each sum says what was added
    expected = np.zeros((vocabulary, 2))
    np.add.at(expected, tokens.astype(int), each)
    found = form(jnp.zeros((vocabulary, 2)), jnp.asarray(tokens), jnp.asarray(each, jnp.float32))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_the_sum_is_the_same_to_the_last_bit_in_each_run_and_however_tokens_are_mixed(form):
    rng = np.random.default_rng(1)
    tokens, each = rng.integers(7, size=1000), rng.normal(size=(1000, 3)).astype(np.float32)
    run = jax.jit(lambda tokens, each: form(jnp.zeros((7, 3)), tokens, each))
    first = run(tokens, each)
    apart = np.argsort(tokens, kind="stable")  # the places of each token stay in their order
    for order in (np.arange(1000), apart):
        assert (run(tokens[order], each[order]) == first).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_float32(form, dtype, monkeypatch):
    monkeypatch.setattr(embedding, "add_in_order", form)
    layer, tokens = mbp.Embedding(1000, 2), jnp.full(4096, 999)
    params = embedding.Params(jnp.zeros((1000, 2), dtype))
    dout = jnp.asarray(np.random.default_rng(2).uniform(0, 1, size=(4096, 2)), dtype)
    _, residuals = layer.forward(params, tokens)
    dW = layer.backward(params, residuals, dout)[0].W
    assert dW.dtype == dtype
    assert (dW[999] == dout.astype(jnp.float32).sum(0).astype(dtype)).all()
    # Added in half precision it stops growing: the next term is less than half a unit.
    assert (jnp.zeros((1000, 2), dtype).at[tokens].add(dout)[999] < dW[999]).all()


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda", "rocm"])
def test_every_platform_has_its_form_and_the_judges_read_it(platform, monkeypatch):
    layer, x = mbp.Embedding(5, 3), jax.ShapeDtypeStruct((2, 4), jnp.int32)
    params, dout = PARAMS[0], jax.ShapeDtypeStruct((2, 4, 3), jnp.float32)

    def backward(params, x, dout):
        return layer.backward(params, layer.forward(params, x)[1], dout)[0]

    text = export.export(jax.jit(backward), platforms=[platform])(params, x, dout).mlir_module()
    by_sorting = platform in ("cuda", "rocm")
    assert ("stablehlo.sort" in text) == by_sorting
    monkeypatch.setattr(interpreter, "PLATFORM", platform)
    for shape in ((2, 4), (7,)):
        rule = rules.of_layer(layer, shape)
        for level, kind, verdict in agreement.verdicts(rule, 3):
            assert verdict.ok, (level, kind)
        program = rule.programs(rule.draw(rules.generator(0), "ties"))[0]
        assert ("= sort[" in str(program.jaxpr)) == by_sorting


# --- in a network ---------------------------------------------------------------------------


def test_the_two_gradients_of_a_tied_table_add():
    network = mbp.tied(
        mbp.sequential(mbp.Embedding(5, 3, initial_std=0.02), mbp.LayerNorm(), mbp.Dense(5)),
        ((0, "W"), (2, "W")),
    )
    params = network.init(jax.random.key(1), TOKENS)

    def ours(params):
        return mbp.manual_grads(params, TOKENS, Y, network=network)

    def loss(params):
        ((table, norm, head),) = params
        h = table.W[TOKENS]
        h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
        logits = (h * norm.scale + norm.shift) @ table.W.T + head.b
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), Y[..., None], -1)
        return -chosen.mean()

    assert same(ours, jax.grad(loss), params).ok


def test_tokens_and_positions_under_vmap_scan_and_jit():
    network = mbp.sequential(mbp.Embedding(5, 4), mbp.PositionEmbedding(3), mbp.Dense(2))
    params = network.init(jax.random.key(2), TOKENS)
    params = jax.tree.map(lambda leaf: jnp.round(4 * leaf), params)  # so that sums are exact

    def grads(tokens):
        settings = {"loss": mbp.SquaredError(), "weights": jnp.ones((2, 3))}
        y = jnp.ones((2, 3, 2))
        return mbp.manual_grads(params, tokens, y, network=network, **settings)

    stacked = jnp.stack([TOKENS, TOKENS[::-1], 4 - TOKENS])
    mapped = jax.jit(jax.vmap(grads))(stacked)
    _, scanned = jax.lax.scan(lambda carry, tokens: (carry, grads(tokens)), 0, stacked)
    for number, tokens in enumerate(stacked):
        alone = jax.tree.leaves(grads(tokens))
        assert all(leaf.any() for leaf in alone)
        for found in map(jax.tree.leaves, (mapped, scanned)):
            assert all(
                (one[number] == other).all() for one, other in zip(found, alone, strict=True)
            )


def test_tables_are_drawn_with_the_deviation_that_is_said():
    for std, layer in (
        (64**-0.5, mbp.Embedding(5000, 64)),
        (0.02, mbp.Embedding(5000, 64, initial_std=0.02)),
    ):
        W = np.asarray(layer.init(jax.random.key(0), TOKENS).W, np.float64)
        assert W.dtype == np.float64
        # The deviation of n normal numbers is off by a share of 1/√(2n): five times that at most.
        assert abs(W.std() / std - 1) <= 5 / np.sqrt(2 * W.size)
    P = mbp.PositionEmbedding(6).init(jax.random.key(0), jnp.ones((2, 4, 3), jnp.bfloat16)).P
    assert (P.shape, P.dtype) == ((6, 3), jnp.bfloat16)


# --- rotations ------------------------------------------------------------------------------


def test_one_position_is_turned_by_nothing():
    x = jax.random.normal(jax.random.key(0), (2, 1, 3, 4))
    assert (rotate(x, 10000.0) == x).all()


def test_products_of_turned_vectors_depend_on_their_distance_alone():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 6))

    def products(q, k, first, second):
        at = [jnp.zeros((1, 12, 1, 6)).at[0, n, 0].set(v) for n, v in ((first, q), (second, k))]
        turned = [rotate(each, 100.0)[0, n, 0] for each, n in zip(at, (first, second), strict=True)]
        return turned[0] @ turned[1]

    assert same(lambda q, k: products(q, k, 2, 5), lambda q, k: products(q, k, 8, 11), q, k).ok
    assert not same(lambda q, k: products(q, k, 2, 5), lambda q, k: products(q, k, 2, 6), q, k).ok


@pytest.mark.parametrize("inverse", [False, True])
def test_long_sequences_in_half_precision_are_rounded_once(inverse):
    x = jax.random.normal(jax.random.key(1), (1, 8192, 1, 64)).astype(jnp.bfloat16)
    found = np.asarray(rotate(x, 10000.0, inverse), np.float64)
    points = np.asarray(x, np.float64)[0, :, 0, :32] + 1j * np.asarray(x, np.float64)[0, :, 0, 32:]
    angles = np.outer(np.arange(8192), 10000.0 ** (-np.arange(32) / 32))
    turned = points * np.exp((-1j if inverse else 1j) * angles)
    exact = np.concatenate([turned.real, turned.imag], -1)[None, :, None]
    # To the nearest one is off by half a unit at most, which a second rounding adds little to.
    apart = np.linalg.norm(found - exact)
    assert apart <= unit_roundoff(jnp.bfloat16) * np.linalg.norm(exact)
