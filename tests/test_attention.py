"""Attention: what no spec says of it, above all that blocks compute the same in linear memory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp.layers import _attention, _blocked_attention
from manual_bp.layers._attention import How, Masks
from verify import judges, networks, rules, specs
from verify.interpreter import INNER
from verify.specs import multi_head_attention as spec


def pieces(rng, T, S, groups=1, empty=False):
    """q, k, v and dout of two examples and one head of keys; a mask that rules some keys out."""
    q, dout = (rng.normal(size=(2, 1, groups, T, 2)) for _ in range(2))
    k, v = (rng.normal(size=(2, 1, S, 2)) for _ in range(2))
    keys = rng.random((2, 1, 1, 1, S)) < (0.5 if empty else 2)
    return (q, k, v, dout), keys


def plain(how, masks):
    def run(q, k, v, dout):
        out, kept = _attention.forward(how, q, k, v, masks)
        dq, dk, dv = _attention.backward(how, q, k, v, kept, dout)
        return {"out": out, "dq": dq, "dk": dk, "dv": dv}

    return run


def in_blocks(how, masks, block):
    def run(q, k, v, dout):
        out, kept = _blocked_attention.forward(how, block, q, k, v, masks)
        errors = _blocked_attention.backward(how, block, q, k, v, masks, out, kept, dout)
        return {"out": out, **dict(zip(("dq", "dk", "dv"), errors, strict=True))}

    return run


@pytest.mark.parametrize(
    ("T", "S", "block"),
    [
        (1, 1, 1),
        (1, 4, 3),
        (4, 1, 3),
        (5, 3, 2),
        (6, 6, 3),
        (7, 5, 3),
        (4, 7, 9),
        (5, 5, 1),
        (6, 2, 1),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_compute_what_the_whole_does(T, S, block, masked):
    args, keys = pieces(np.random.default_rng(T * S), T, S, groups=2, empty=masked)
    masks = Masks(keys) if masked else Masks()
    how = How(0.7, soft_cap=1.5)
    ours, theirs = in_blocks(how, masks, block), plain(how, masks)
    verdict = judges.same(ours, theirs, *args)
    assert verdict.ok, verdict


@pytest.mark.parametrize(("T", "block"), [(1, 2), (5, 2), (7, 1), (6, 2), (7, 3), (8, 4)])
@pytest.mark.parametrize("window", [None, 1, 2, 5])
def test_causal_blocks_compute_what_the_whole_does(T, block, window):
    args, _ = pieces(np.random.default_rng(T), T, T)
    how = How(0.7, causal=True, window=window)
    verdict = judges.same(in_blocks(how, Masks(), block), plain(how, Masks()), *args)
    assert verdict.ok, verdict


def test_blocks_and_the_whole_agree_at_growing_precision_too():
    args, keys = pieces(np.random.default_rng(3), 4, 5, empty=True)
    how, masks = How(0.5, soft_cap=2.0), Masks(keys)
    ours, theirs = in_blocks(how, masks, 2), plain(how, masks)
    assert judges.same(ours, theirs, *args, judge=judges.digits).ok


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3), (2, 4, 3, 3)])
@pytest.mark.parametrize("block", [None, 2])
def test_masks_of_every_shape(shape, block):
    """For all examples, for all heads, and for each head by itself."""
    rng = np.random.default_rng(len(shape))
    layer = mbp.MultiHeadAttention(
        4, kv_heads=2, head_features=2, attention_masked=True, block=block, bias=False
    )
    x = rng.normal(size=(2, 3, 2))
    params = networks.draw_params(rng, layer, x)
    mask = rng.random(shape) < 0.6
    dout = rng.normal(size=x.shape)

    def ours(params, x, dout):
        out, residuals = layer.forward(params, x, attention_mask=jnp.asarray(mask))
        return out, layer.backward(params, residuals, dout)

    def theirs(params, x, dout):
        untapped = lambda name, value: value  # noqa: E731
        run = lambda p, v: spec.reference(layer, p, v, untapped, attention_mask=mask)  # noqa: E731
        out, pull = jax.vjp(run, params, x)
        return out, pull(dout)

    assert judges.same(ours, theirs, params, x, dout).ok


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("settings", [{}, {"causal": True}, {"causal": True, "window": 2}])
def test_without_masks(settings, block):
    layer = mbp.MultiHeadAttention(2, bias=False, block=block, **settings)
    rule = rules.of_layer(layer, (2, 5, 4))
    for kind in ("normal", "ties", "large"):
        assert judges.bounds(rule, rule.draw(rules.generator(1), kind)).ok


def test_one_position_reads_itself():
    """P = 1: nothing is left for queries and keys to learn."""
    layer = mbp.MultiHeadAttention(1, causal=True)
    x = jnp.ones((3, 1, 2))
    params = layer.init(jax.random.key(0), x)
    dparams, _ = layer.backward(params, layer.forward(params, x)[1], x)
    assert not dparams.Wq.any() and not dparams.Wk.any() and dparams.Wv.any()


def test_the_gradient_of_the_keys_bias_is_zero_without_rotary_and_cap():
    layer = mbp.MultiHeadAttention(2)
    rng = np.random.default_rng(0)
    x, dout = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    params = networks.draw_params(rng, layer, x)

    def ours(params, x, dout):
        return layer.backward(params, layer.forward(params, x)[1], dout)[0].bk

    zero = lambda params, x, dout: 0 * params.bk  # noqa: E731
    assert judges.same(ours, zero, params, x, dout).ok


# --- linear memory ----------------------------------------------------------------------------


def equations(jaxpr):
    """All equations of a program, those inside others too."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name in INNER:
            inner = equation.params[INNER[equation.primitive.name]]
            yield from equations(getattr(inner, "jaxpr", inner))


def program(layer, T, **taken):
    x = jax.ShapeDtypeStruct((1, T, 4), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)

    def run(params, x, taken):
        out, residuals = layer.forward(params, x, **taken)
        return layer.backward_taken(params, residuals, out)

    given = {name: jax.ShapeDtypeStruct((1, T), bool) for name in layer.takes}
    return list(equations(jax.make_jaxpr(run)(params, x, given).jaxpr))


BLOCKED = mbp.MultiHeadAttention(2, causal=True, masked=True, soft_cap=3.0, rotary=10.0, block=16)


def sizes(found):
    return [out.aval.size for equation in found for out in equation.outvars]


def test_no_value_of_a_program_in_blocks_is_larger_than_a_strip():
    T = 512
    assert max(sizes(program(BLOCKED, T))) <= BLOCKED.heads * 16 * T
    assert max(sizes(program(replace(BLOCKED, block=None), T))) >= T * T  # and this sees it


def test_a_program_in_blocks_is_as_long_for_any_t():
    lengths = {len(program(BLOCKED, T)) for T in (64, 512, 2048)}
    assert len(lengths) == 1


@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize(("T", "block"), [(1, 1), (5, 1), (7, 2), (8, 2), (9, 1), (23, 2)])
def test_a_strip_has_all_keys_that_its_queries_may_read(T, block, window):
    how, x = How(1.0, causal=True, window=window), jnp.zeros((1, 1, 1, T, 1))
    grid = _blocked_attention.grid_of(block, x, x[0])
    seen = np.zeros(T, int)
    for part in range(grid.parts):
        for turn in range(grid.turns):
            first, (start, width) = grid.first(part, turn), grid.columns(how, part, turn)
            assert 0 <= start <= start + width <= T
            for row in range(first, min(first + grid.rows, T)):
                seen[row] += 1
                oldest = 0 if window is None else max(0, row + 1 - window)
                assert start <= oldest and row < start + width
    assert (seen == 1).all()


def test_what_no_query_may_read_is_left_out_of_strips():
    x = jnp.zeros((1, 1, 1, 64, 1))
    grid = _blocked_attention.grid_of(4, x, x[0])
    widths = [grid.columns(How(1.0, causal=True), part, 0)[1] for part in range(grid.parts)]
    assert widths == [16, 32, 48, 64]  # 5/8 of all
    how = How(1.0, causal=True, window=9)
    assert {grid.columns(how, part, 0)[1] for part in range(grid.parts)} == {9 + 4 - 1}


# --- encoder and decoder ----------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 2])
def test_the_gradient_through_memory_reaches_an_encoder(block):
    """Two layers read the same memory, so that its errors add; then the encoder's own backward."""
    encoder = mbp.Dense(3, mbp.tanh)
    decoder = mbp.sequential(
        mbp.skip(mbp.MultiHeadAttention(2, memory=3, block=block)),
        mbp.MultiHeadAttention(1, memory=3, soft_cap=2.0),
    )
    rng = np.random.default_rng(5)
    source, x = rng.normal(size=(2, 5, 2)), rng.normal(size=(2, 3, 4))
    y = rng.normal(size=(2, 3, 4))
    below = networks.draw_params(rng, encoder, source)
    above = networks.draw_params(rng, decoder, x)

    def ours(below, above, source, x, y):
        memory, residuals = encoder.forward(below, source)
        found = mbp.manual_pass(
            above, x, y, network=decoder, loss=mbp.SquaredError(), memory=memory
        )
        dbelow, dsource = encoder.backward(below, residuals, found.dtaken["memory"])
        return found.loss, found.grads, found.dx, dbelow, dsource

    def theirs(below, above, source, x, y):
        untapped = lambda name, value: value  # noqa: E731

        def objective(below, above, source, x):
            memory = jnp.tanh(source @ below.W.T + below.b)
            first, second = decoder.children[0].body, decoder.children[1]
            h = x + spec.reference(first, above[0][0], x, untapped, memory=memory)
            out = spec.reference(second, above[1], h, untapped, memory=memory)
            return 0.5 * jnp.sum((out - y) ** 2) / 6

        value, grads = jax.value_and_grad(objective, (0, 1, 2, 3))(below, above, source, x)
        return value, grads[1], grads[3], grads[0], grads[2]

    verdict = judges.same(ours, theirs, below, above, source, x, y)
    assert verdict.ok, verdict


# --- extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("block", [None, 2])
def test_scores_of_any_size_give_finite_gradients(dtype, block):
    """A query that reads nothing, and scores beyond what e^S can hold, with keys masked above."""
    layer = mbp.MultiHeadAttention(1, masked=True, causal=True, bias=False, block=block)
    x = jnp.asarray([[[100.0, 1.0], [-100.0, 50.0], [90.0, -3.0], [0.0, 70.0]]], dtype)
    params = layer.init(jax.random.key(1), x)
    mask = jnp.array([[False, True, True, False]])
    out, residuals = jax.jit(layer.forward)(params, x, mask=mask)
    dparams, dx = jax.jit(layer.backward)(params, residuals, jnp.ones_like(out))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((out, dparams, dx)))
    assert not out[0, 0].any() and not dx[0, 0].any()  # reads nothing, and is read by nobody


def results(layer, params, x, dout, **taken):
    out, residuals = layer.forward(params, x, **taken)
    return out, *layer.backward_taken(params, residuals, dout)


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf])
def test_whatever_is_in_masked_memory_changes_nothing(block, spoilt):
    layer = mbp.MultiHeadAttention(2, memory=3, masked=True, block=block)
    rng = np.random.default_rng(2)
    x, memory = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 6, 3))
    params, x = jax.tree.map(jnp.asarray, (networks.draw_params(rng, layer, x), x))
    mask = jnp.arange(6) < jnp.array([[3], [5]])
    run = lambda memory: results(layer, params, x, x, memory=memory, memory_mask=mask)  # noqa: E731
    right, found = run(jnp.asarray(memory)), run(jnp.where(mask[..., None], memory, spoilt))
    jax.tree.map(np.testing.assert_array_equal, found, right)
    assert not jnp.where(mask[..., None], 0, found[-1]["memory"]).any()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf])
def test_padding_of_x_spoils_its_own_query_alone(block, spoilt):
    """And through manual_grads, with weights of 0 there, nothing at all."""
    layer = mbp.MultiHeadAttention(2, masked=True, block=block)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 6, 4))
    params, x = jax.tree.map(jnp.asarray, (networks.draw_params(rng, layer, x), x))
    mask = jnp.arange(6) < jnp.array([[3], [5]])
    padded = jnp.where(mask[..., None], x, spoilt)
    out, _ = layer.forward(params, x, mask=mask)
    found, _ = layer.forward(params, padded, mask=mask)
    np.testing.assert_array_equal(found[mask], out[mask])
    assert not jnp.isfinite(found[~mask]).any()
    grads, right = (
        mbp.manual_grads(
            params, v, x, network=layer, loss=mbp.SquaredError(), weights=mask * 0.1, mask=mask
        )
        for v in (padded, x)
    )
    jax.tree.map(np.testing.assert_array_equal, grads, right)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_memory_of_an_example_of_weight_0_changes_nothing():
    layer = mbp.MultiHeadAttention(2, memory=3)
    x, memory = jnp.ones((3, 2, 4)), jnp.ones((3, 5, 3))
    params = layer.init(jax.random.key(0), x)
    weights = jnp.array([[1.0, 2.0], [0.0, 0.0], [0.0, 1.0]])
    right, found = (
        mbp.manual_pass(
            params, x, 0 * x, network=layer, loss=mbp.SquaredError(), weights=weights, memory=each
        )
        for each in (memory, memory.at[1].set(jnp.nan))
    )
    jax.tree.map(np.testing.assert_array_equal, found.grads, right.grads)
    assert found.loss == right.loss and not found.dtaken["memory"][1].any()


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("wide", ["params", "x", "dout"])
def test_float32_and_float64_meet_as_they_do_in_jax(wide, block):
    """One of them in float64: each gradient has the dtype of what it is the gradient of."""
    layer = mbp.MultiHeadAttention(2, memory=3, block=block)
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 3, 3))
    given = {"x": x, "memory": memory, "params": networks.draw_params(rng, layer, x), "dout": x}
    with jax.enable_x64(True):
        given = {
            name: jax.tree.map(lambda a, n=name: jnp.asarray(a, "f8" if n == wide else "f4"), tree)
            for name, tree in given.items()
        }
        params, x, memory, dout = (given[name] for name in ("params", "x", "memory", "dout"))
        out, residuals = layer.forward(params, x, memory=memory)
        dparams, dx, dtaken = layer.backward_taken(params, residuals, dout)
        assert out.dtype == jnp.result_type(*params, x)
        dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]  # noqa: E731
        assert dtypes((dparams, dx, dtaken["memory"])) == dtypes((params, x, memory))


def test_an_empty_batch_gives_empty_results():
    for block in (None, 2):
        layer = mbp.MultiHeadAttention(2, rotary=10.0, block=block)
        x = jnp.zeros((0, 3, 4))
        params = layer.init(jax.random.key(0), x)
        out, residuals = layer.forward(params, x)
        dparams, dx = layer.backward(params, residuals, out)
        assert out.shape == dx.shape == (0, 3, 4)
        assert dparams.Wq.shape == (4, 4) and not dparams.Wq.any()


def test_every_setting_is_drawn_at_random():
    rng = rules.generator(0)
    drawn = [spec.draw(rng, (2, 3, 4)) for _ in range(200)]
    for name in ("causal", "window", "masked", "attention_masked", "memory", "soft_cap"):
        assert len({getattr(layer, name) for layer in drawn}) > 1, name
    for name in ("rotary", "block", "bias", "kv_heads"):
        assert len({getattr(layer, name) for layer in drawn}) > 1, name
    assert spec.draw(rng, (2, 3)) is None
    assert specs.of_layer(drawn[0]).layer is mbp.MultiHeadAttention
