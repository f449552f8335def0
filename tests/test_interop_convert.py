"""Weights carried over from flax.nnx and equinox and back: the same function, and the identity."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interop_modules import assert_same, drawn, numbers

import manual_bp as mbp
import manual_bp.interop.equinox as for_equinox
import manual_bp.interop.flax as for_flax

RNGS, KEY = nnx.Rngs(0), jax.random.key(0)
N = eqx.nn


def flax_module(module):
    """The module with every parameter and statistic drawn, statistics above 0."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    above = jax.tree.map(
        lambda leaf: jnp.abs(leaf) + 0.5 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, rest
    )
    return nnx.merge(graph, drawn(params), above)


def zeros(*shape):
    return jnp.zeros(shape)


FLAX = [
    (nnx.Linear(3, 2, rngs=RNGS), (4, 3)),
    (nnx.Linear(3, 3, use_bias=False, rngs=RNGS), (4, 3)),
    (nnx.Conv(4, 6, (3, 2), strides=2, feature_group_count=2, rngs=RNGS), (2, 4, 3, 4)),
    (nnx.Conv(2, 2, 2, padding=((1, 1),), kernel_dilation=2, use_bias=False, rngs=RNGS), (2, 4, 2)),
    (nnx.LayerNorm(4, rngs=RNGS), (3, 4)),
    (nnx.RMSNorm(4, epsilon=0.1, rngs=RNGS), (3, 4)),
    (nnx.GroupNorm(4, 2, rngs=RNGS), (2, 3, 4)),
    (nnx.BatchNorm(4, rngs=RNGS), (5, 4)),
    (nnx.BatchNorm(4, use_running_average=True, rngs=RNGS), (5, 4)),
    (nnx.RNN(nnx.OptimizedLSTMCell(3, 2, rngs=RNGS)), (2, 3, 3)),
    (nnx.RNN(nnx.GRUCell(3, 3, rngs=RNGS), reverse=True, keep_order=True), (2, 3, 3)),
    (nnx.RNN(nnx.SimpleCell(3, 2, activation_fn=nnx.relu, rngs=RNGS)), (2, 3, 3)),
    (nnx.MultiHeadAttention(4, 8, num_kv_heads=2, rngs=RNGS), (1, 3, 8)),
    (nnx.Sequential(nnx.Linear(3, 4, rngs=RNGS), nnx.gelu, nnx.BatchNorm(4, rngs=RNGS)), (5, 3)),
]


def names(pairs):
    return [f"{number}-{type(module).__name__}" for number, (module, _) in enumerate(pairs)]


def _flax_call(module, x):
    if isinstance(module, nnx.RNN):
        zeros = jnp.zeros((len(x), module.cell.hidden_features), x.dtype)
        of_lstm = isinstance(module.cell, nnx.OptimizedLSTMCell)
        return module(x, initial_carry=(zeros, zeros) if of_lstm else zeros)
    if isinstance(module, nnx.MultiHeadAttention):
        return module(x, decode=False)
    return module(x)


@pytest.mark.parametrize(("module", "shape"), FLAX, ids=names(FLAX))
def test_a_flax_module_is_the_layer_that_it_becomes(module, shape):
    module = flax_module(module)
    if isinstance(module, nnx.RNN) and isinstance(module.cell, nnx.SimpleCell):
        for part in (module.cell, module.cell.dense_i, module.cell.dense_h):
            part.dtype = None  # it is float32 unless told otherwise, and the judge's is wider
    layer, params, statistics = for_flax.from_module(module)
    taken = {"statistics": statistics} if "statistics" in layer.takes else {}
    graph, state = nnx.split(module)
    leaves, structure = jax.tree.flatten(state)
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def merged(some):
        rest = iter(some)
        pairs = zip(floating, leaves, strict=True)
        every = [next(rest) if is_one else leaf for is_one, leaf in pairs]
        return nnx.merge(graph, jax.tree.unflatten(structure, every))

    def theirs(some, x):
        return _flax_call(merged(some), x)

    def ours(some, x):
        layer, params, statistics = for_flax.from_module(merged(some))
        taken = {"statistics": statistics} if "statistics" in layer.takes else {}
        return layer.forward(params, x, **taken)[0]

    some = [leaf for is_one, leaf in zip(floating, leaves, strict=True) if is_one]
    assert layer.forward(params, numbers(*shape), **taken)[0].dtype == jnp.float32
    assert_same(ours, theirs, (some, numbers(*shape)))


@pytest.mark.parametrize(("module", "shape"), FLAX, ids=names(FLAX))
def test_from_flax_and_back_is_the_identity(module, shape):
    module = flax_module(module)
    converted = for_flax.from_module(module)
    back = for_flax.to_module(*converted)
    (graph, state), (graph_back, state_back) = nnx.split(module), nnx.split(back)
    assert graph_back == graph
    assert jax.tree.structure(state_back) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), state, state_back))
    again = for_flax.from_module(back)
    assert again.layer == converted.layer
    assert jax.tree.structure(again) == jax.tree.structure(converted)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, converted))


def test_flaxs_lstm_cell_of_four_gates_is_the_optimized_one():
    cell = flax_module(nnx.LSTMCell(3, 2, rngs=RNGS))
    x = numbers(2, 3, 3)
    layer, params, _ = for_flax.from_module(cell)
    back = for_flax.to_module(layer, params)
    out = nnx.RNN(cell)(jnp.asarray(x))
    assert type(back.cell) is nnx.OptimizedLSTMCell
    assert (back(jnp.asarray(x)).shape, layer.forward(params, x)[0].shape) == (out.shape,) * 2
    again = for_flax.from_module(nnx.RNN(cell)).params
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))


def test_embeddings():
    tokens = jnp.array([[1, 4]])
    for module, library in (
        (nnx.Embed(5, 3, rngs=RNGS), for_flax),
        (N.Embedding(5, 3, key=KEY), for_equinox),
    ):
        layer, params, _ = library.from_module(module)
        back = library.to_module(layer, params)
        call = back if library is for_flax else jax.vmap(jax.vmap(back))
        assert (layer.forward(params, tokens)[0] == call(tokens)).all()
        assert type(back) is type(module)


EQUINOX = [
    (N.Linear(3, 3, key=KEY), (4, 3)),
    (N.Linear(3, 2, use_bias=False, key=KEY), (4, 3)),
    (N.Conv1d(2, 4, 3, padding="SAME", groups=2, key=KEY), (2, 2, 4)),
    (N.Conv2d(2, 3, 2, stride=(2, 1), padding=1, use_bias=False, key=KEY), (2, 2, 4, 3)),
    (N.Conv3d(1, 2, 2, key=KEY), (1, 1, 3, 2, 3)),
    (N.LayerNorm(4), (3, 4)),
    (N.RMSNorm(4, use_bias=False), (3, 4)),
    (N.GroupNorm(2, 4), (2, 4, 3)),
    (N.MultiheadAttention(2, 4, key=KEY), (2, 3, 4)),
    (N.LSTMCell(3, 2, key=KEY), (2, 3, 3)),
    (N.GRUCell(3, 2, key=KEY), (2, 3, 3)),
    (N.MLP(3, 2, 5, 2, key=KEY), (4, 3)),
    (N.MLP(3, 2, 5, 1, jax.nn.gelu, jax.nn.tanh, use_bias=False, key=KEY), (4, 3)),
    (N.Sequential([N.Linear(3, 2, key=KEY), N.Lambda(jax.nn.silu)]), (4, 3)),
]


def _equinox_call(module, x):
    if isinstance(module, N.MultiheadAttention):
        return jax.vmap(lambda x: module(x, x, x))(x)
    if isinstance(module, N.LSTMCell | N.GRUCell):
        n = module.hidden_size

        def step(state, x):
            state = module(x, state)
            return state, state[0] if isinstance(state, tuple) else state

        zeros = jnp.zeros(n, x.dtype)
        first = (zeros, zeros) if isinstance(module, N.LSTMCell) else zeros
        return jax.vmap(lambda x: jax.lax.scan(step, first, x)[1])(x)
    return jax.vmap(module)(x)


@pytest.mark.parametrize(("module", "shape"), EQUINOX, ids=names(EQUINOX))
def test_an_equinox_module_is_the_layer_that_it_becomes(module, shape):
    arrays, static = eqx.partition(drawn(module), eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    channels_first = isinstance(module, N.Conv | N.GroupNorm)

    def read(leaves):
        return eqx.combine(jax.tree.unflatten(structure, leaves), static)

    def ours(leaves, x):
        layer, params, _ = for_equinox.from_module(read(leaves))
        if not channels_first:
            return layer.forward(params, x)[0]
        return jnp.moveaxis(layer.forward(params, jnp.moveaxis(x, 1, -1))[0], -1, 1)

    assert_same(ours, lambda leaves, x: _equinox_call(read(leaves), x), (leaves, numbers(*shape)))


@pytest.mark.parametrize(("module", "shape"), EQUINOX, ids=names(EQUINOX))
def test_from_equinox_and_back_is_the_identity(module, shape):
    module = drawn(module)
    converted = for_equinox.from_module(module)
    back = for_equinox.to_module(*converted)
    assert jax.tree.structure(back) == jax.tree.structure(module)
    assert all(map(np.array_equal, *map(_arrays, (back, module))))
    again = for_equinox.from_module(back)
    assert again.layer == converted.layer
    assert all(map(np.array_equal, *map(jax.tree.leaves, (again.params, converted.params))))


def _arrays(module):
    return [leaf for leaf in jax.tree.leaves(module) if eqx.is_array_like(leaf)]


def test_an_equinox_batch_norm_and_its_state():
    module, state = N.make_with_state(N.BatchNorm)(3, "batch", mode="batch")
    module = drawn(module)
    x = jnp.asarray(numbers(5, 3))
    normalise = jax.vmap(
        lambda module, x, state: module(x, state),
        axis_name="batch",
        in_axes=(None, 0, None),
        out_axes=(0, None),
    )
    for _ in range(3):
        _, state = normalise(module, x, state)
    layer, params, statistics = for_equinox.from_module(module, state)
    assert layer == mbp.BatchNorm()
    frozen = eqx.nn.inference_mode(module)
    layer, params, same_statistics = for_equinox.from_module(frozen, state)
    assert layer == mbp.FrozenBatchNorm()
    assert jax.tree.all(jax.tree.map(np.array_equal, same_statistics, statistics))
    back, back_state = for_equinox.to_module(layer, params, statistics)
    assert_same(
        lambda x: layer.forward(params, x, statistics=statistics)[0],
        lambda x: normalise(back, x, back_state)[0],
        (x,),
    )
    again = for_equinox.from_module(back, back_state)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.statistics, statistics))


def cell_params(n=2, features=3):
    return mbp.LSTM(n).init(KEY, jnp.ones((1, 1, features)))


REFUSED = [
    (
        lambda: for_flax.from_module(nnx.LayerNorm(4, use_bias=False, rngs=RNGS)),
        "flax's LayerNorm: use_bias=False can't be carried over to a layer of manual_bp, expected "
        "True.",
    ),
    (
        lambda: for_flax.from_module(nnx.Conv(2, 2, 3, padding="CIRCULAR", rngs=RNGS)),
        "flax's Conv: padding='CIRCULAR' can't be carried over",
    ),
    (
        lambda: for_flax.from_module(nnx.RNN(nnx.GRUCell(2, 2, gate_fn=nnx.tanh, rngs=RNGS))),
        "flax's GRUCell: gate_fn=tanh can't be carried over to a layer of manual_bp, expected "
        "sigmoid",
    ),
    (
        lambda: for_flax.from_module(nnx.MultiHeadAttention(2, 4, normalize_qk=True, rngs=RNGS)),
        "flax's MultiHeadAttention: normalize_qk=True can't be carried over",
    ),
    (
        lambda: for_flax.from_module(nnx.Dropout(0.5)),
        "from_module: Dropout has no counterpart among manual_bp's layers; those that have one are "
        "Linear, Conv,",
    ),
    (
        lambda: for_flax.to_module(mbp.Dense(2, mbp.tanh), mbp.Dense(2).init(KEY, zeros(1, 3))),
        "Dense(2, tanh): activation=tanh can't be carried over to a module of flax.nnx, expected "
        "identity. Write it as two layers: mbp.sequential(mbp.Dense(3), mbp.tanh).",
    ),
    (
        lambda: for_flax.to_module(
            mbp.MultiHeadAttention(2, causal=True),
            mbp.MultiHeadAttention(2).init(KEY, zeros(1, 2, 4)),
        ),
        "MultiHeadAttention(2, causal=True): causal=True can't be carried over to a module of "
        "flax.nnx, expected False. flax takes it at the call, module(x, is_causal=True) or "
        "mask=...: carry over dataclasses.replace(layer, causal=False).",
    ),
    (
        lambda: for_flax.to_module(
            mbp.GRU(2), mbp.GRU(2).init(KEY, zeros(1, 1, 3))._replace(c=jnp.ones(2))
        ),
        "GRU(2): the bias c inside of the reset isn't 0, and flax's GRUCell has no such bias. "
        "equinox's GRUCell has one, bias_n.",
    ),
    (
        lambda: for_flax.to_module(mbp.LSTM(2, masked=True), cell_params()),
        "LSTM(2, masked=True): masked=True can't be carried over to a module of flax.nnx",
    ),
    (
        lambda: for_flax.to_module(mbp.Flatten(), ()),
        "to_module: Flatten() has no counterpart among flax.nnx's modules",
    ),
    (
        lambda: for_equinox.from_module(N.RMSNorm(4)),
        "equinox's RMSNorm: use_bias=True can't be carried over to a layer of manual_bp, expected "
        "False. mbp.RMSNorm has no shift.",
    ),
    (
        lambda: for_equinox.from_module(N.Linear("scalar", 2, key=KEY)),
        "equinox's Linear: in_features='scalar' can't be carried over",
    ),
    (
        lambda: for_equinox.from_module(N.MultiheadAttention(2, 4, use_query_bias=True, key=KEY)),
        "equinox's MultiheadAttention: use_key_bias=False can't be carried over to a layer of "
        "manual_bp, expected True. Here all four have a bias, or none.",
    ),
    (
        lambda: for_equinox.from_module(N.MLP(2, 2, 2, 1, jnp.sin, key=KEY)),
        "equinox's MLP: activation=sin can't be carried over",
    ),
    (
        lambda: for_equinox.from_module(N.BatchNorm(2, "batch", mode="batch")),
        "from_module: BatchNorm's averages are in equinox's State: give it too, "
        "from_module(module, state).",
    ),
    (
        lambda: for_equinox.to_module(mbp.LSTM(2, reverse=True), cell_params()),
        "LSTM(2, reverse=True): reverse=True can't be carried over to a module of equinox, "
        "expected False. A cell is one step: say it in the jax.lax.scan over it.",
    ),
    (
        lambda: for_equinox.to_module(
            mbp.mlp([3, 4, 5, 2]), mbp.mlp([3, 4, 5, 2]).init(KEY, zeros(1, 3))
        ),
        "equinox's MLP has one width, one activation and one use_bias for all hidden layers.",
    ),
]


@pytest.mark.parametrize(("convert", "text"), REFUSED, ids=[text[:40] for _, text in REFUSED])
def test_what_cannot_be_carried_over_is_an_error_that_says_why(convert, text):
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        convert()


def test_what_the_call_takes_there_is_a_setting_here():
    module = nnx.MultiHeadAttention(2, 4, decode=False, rngs=RNGS)
    layer, params, _ = for_flax.from_module(flax_module(module))
    causal = dataclasses.replace(layer, causal=True, block=2)
    back = for_flax.to_module(dataclasses.replace(causal, causal=False), params)
    x = jnp.asarray(numbers(1, 3, 4))
    assert_same(
        lambda x: causal.forward(params, x)[0],
        lambda x: back(x, is_causal=True, decode=False),
        (x,),
    )
