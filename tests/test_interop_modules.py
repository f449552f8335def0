"""Whole models of flax and equinox with our modules in them, and what changing imports is worth."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from interop_modules import assert_same, drawn, numbers, of_flax

import manual_bp.interop.equinox as for_equinox
import manual_bp.interop.flax as for_flax
from benchmarks import interop
from benchmarks.measuring import temporary_bytes
from manual_bp.interop.functions import linear_cross_entropy


def test_a_flax_gpt_is_the_same_with_our_modules_and_our_head():
    def make(of):
        return interop.GPT(of, vocabulary=7, width=4, heads=2, rngs=nnx.Rngs(0))

    tokens = np.array([[1, 4, 0, 6], [2, 2, 5, 3]])
    pair = interop.flax_pair(make, interop.gpt_loss, tokens)
    params, *data = pair.args
    assert_same(
        jax.value_and_grad(pair.ours), jax.value_and_grad(pair.stock), (drawn(params), *data)
    )


def test_an_equinox_mlp_is_the_same_with_our_modules_and_our_loss():
    class Classifier(eqx.Module):
        body: eqx.nn.MLP
        head: eqx.nn.Linear

        def __init__(self, of):
            self.body = of.MLP(3, 4, 5, 2, jax.nn.silu, key=jax.random.key(0))
            self.head = of.Linear(4, 6, key=jax.random.key(1))

    def stock(model, x, labels):
        logits = jax.vmap(lambda x: model.head(model.body(x)))(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def ours(model, x, labels):
        h = jax.vmap(model.body)(x)
        return linear_cross_entropy(h, model.head.weight, labels, model.head.bias)

    x, labels = numbers(4, 3), np.array([0, 5, 2, 2])
    theirs = drawn(eqx.filter(Classifier(eqx.nn), eqx.is_inexact_array))
    leaves = jax.tree.leaves(theirs)

    def of_leaves(loss, of):
        model = Classifier(of)
        arrays, static = eqx.partition(model, eqx.is_inexact_array)

        def run(leaves, x, labels):
            arrays_now = jax.tree.unflatten(jax.tree.structure(arrays), leaves)
            return loss(eqx.combine(arrays_now, static), x, labels)

        return jax.value_and_grad(run, (0, 1))

    assert_same(of_leaves(ours, for_equinox), of_leaves(stock, eqx.nn), (leaves, x, labels))


def memory_over_stock(pair):
    """Temporary bytes of the gradient, with our modules over the library's own."""
    ways = interop.ways(pair).values()
    ours, stock = (temporary_bytes(way.function, *way.args) for way in ways)
    return ours / stock


def test_a_head_takes_a_tenth_of_the_memory_at_most():
    assert memory_over_stock(interop.head()) <= 0.1


@pytest.mark.parametrize("make", [interop.block, interop.equinox_block])
def test_a_block_takes_half_of_the_memory_at_most(make):
    assert memory_over_stock(make(steps=1024, width=64, heads=4)) <= 0.5


@pytest.mark.parametrize(
    "module",
    [
        lambda of: of.Embedding(512, 64, key=jax.random.key(0)),
        lambda of: of.Conv1d(64, 64, 3, padding="SAME", key=jax.random.key(0)),
        lambda of: of.Linear(64, 512, key=jax.random.key(0)),
    ],
    ids=["Embedding", "Conv1d", "Linear"],
)
def test_a_mapped_module_has_one_gradient_of_its_weights_not_one_for_each_example(module):
    def temporary(of):
        model = module(of)
        shape = {"Embedding": (256,), "Conv1d": (256, 64, 4), "Linear": (256, 64)}
        dtype = jnp.int32 if shape[type(model).__name__] == (256,) else jnp.float32
        x = jax.ShapeDtypeStruct(shape[type(model).__name__], dtype)

        def loss(model, x):
            return jnp.square(jax.vmap(model)(x)).sum()

        return temporary_bytes(jax.grad(loss), eqx.filter(model, eqx.is_array), x)

    assert temporary(for_equinox) <= 1.5 * temporary(eqx.nn)


def test_gradients_of_each_example_of_many_models_and_inside_jit_are_equinoxs():
    stock, ours = (of.MLP(3, 2, 4, 1, key=jax.random.key(0)) for of in (eqx.nn, for_equinox))
    x = numbers(4, 3)

    def of_each(leaves, x, like, map_model):
        arrays, static = eqx.partition(like, eqx.is_inexact_array)
        arrays = jax.tree.unflatten(jax.tree.structure(arrays), leaves)

        def loss(arrays, x):
            transformed = (lambda f: f) if map_model else jax.jit
            return transformed(lambda x: eqx.combine(arrays, static)(x).sum())(x) ** 2

        if map_model:
            arrays = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf, leaf]), arrays)
        gradient = jax.vmap(jax.grad(loss), (0 if map_model else None, 0))(arrays, x)
        total = jax.grad(lambda x: jax.vmap(loss, (0 if map_model else None, 0))(arrays, x).sum())
        return jax.tree.leaves(gradient), total(x)

    leaves = jax.tree.leaves(eqx.filter(drawn(stock), eqx.is_inexact_array))
    for map_model in (False, True):
        assert_same(
            lambda *args, map_model=map_model: of_each(*args, ours, map_model),
            lambda *args, map_model=map_model: of_each(*args, stock, map_model),
            (leaves, x),
        )


CELLS = {
    "LSTMCell": lambda of: of.LSTMCell(3, 2, rngs=nnx.Rngs(0)),
    "OptimizedLSTMCell": lambda of: of.OptimizedLSTMCell(3, 2, rngs=nnx.Rngs(0)),
    "GRUCell": lambda of: of.GRUCell(3, 2, rngs=nnx.Rngs(0)),
    "SimpleCell": lambda of: of.SimpleCell(3, 2, dtype=None, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize(
    ("cell", "settings", "shape", "lengths"),
    [
        ("LSTMCell", {}, (2, 3, 3), None),
        ("OptimizedLSTMCell", {"reverse": True}, (2, 3, 3), None),
        ("OptimizedLSTMCell", {"return_carry": True}, (2, 3, 3), None),
        ("OptimizedLSTMCell", {"reverse": True, "keep_order": True}, (3, 3), None),
        ("GRUCell", {"time_major": True}, (3, 2, 3), None),
        ("GRUCell", {"return_carry": True, "reverse": True}, (2, 3, 3), np.array([3, 2])),
        ("GRUCell", {"reverse": True}, (1, 2, 3, 3), None),
        ("SimpleCell", {}, (2, 3, 3), np.array([3, 2])),
    ],
)
def test_rnn_is_flaxs(cell, settings, shape, lengths):
    stock, ours = (of.RNN(CELLS[cell](of), rngs=False, **settings) for of in (nnx, for_flax))
    examples = shape[1:-1] if "time_major" in settings else shape[:-2]

    def call(module, x, c, h):
        carry = (c, h) if "LSTM" in cell else h
        return module(x, initial_carry=carry, seq_lengths=lengths)

    xs = numbers(*shape), numbers(*examples, 2), numbers(*examples, 2, seed=2)
    theirs, args = of_flax(stock, call, *xs)
    mine, _ = of_flax(ours, call, *xs)
    params, *rest = args
    assert_same(mine, theirs, (drawn(params), *rest))


def test_rnn_begins_at_zeros_and_counts_its_keys_as_flaxs_does():
    x = jnp.asarray(numbers(2, 3, 3))
    stock, ours = (of.RNN(CELLS["GRUCell"](of)) for of in (nnx, for_flax))
    from_zeros = ours(x, initial_carry=jnp.zeros((2, 2)))
    assert (ours(x) == from_zeros).all()
    stock(x)
    assert ours.rngs.count[...] == stock.rngs.count[...] == 1


@pytest.mark.parametrize("of", [nnx, for_flax], ids=["flax's cell", "our cell"])
def test_rnn_runs_a_layer_over_the_whole_sequence(of):
    rnn = for_flax.RNN(CELLS["OptimizedLSTMCell"](of), rngs=False)
    x, carry = numbers(2, 4, 3), (jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    program = str(jax.make_jaxpr(lambda x: rnn(x, initial_carry=carry))(x))
    assert program.count("dot_general") == 2, "one before the loop, for all steps, and one in it"


def test_nnx_trains_a_model_of_ours():
    model = interop.GPT(for_flax, vocabulary=7, width=4, heads=2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)
    tokens = jnp.array([[1, 2, 3, 4, 5, 6]])

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: interop.gpt_loss(for_flax, model, tokens))(
            model
        )
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def test_equinox_saves_and_compiles_a_model_of_ours(tmp_path):
    model = for_equinox.MLP(3, 2, 4, 1, key=jax.random.key(0))
    eqx.tree_serialise_leaves(tmp_path / "model", model)
    stock = eqx.tree_deserialise_leaves(
        tmp_path / "model", eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(1))
    )
    x = numbers(3)
    loss = eqx.filter_jit(eqx.filter_value_and_grad(lambda model, x: model(x).sum()))
    ours, theirs = loss(model, x), loss(stock, x)
    assert isinstance(ours[1], for_equinox.MLP)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a.shape == b.shape, *map(jax.tree.leaves, (ours, theirs)))
    )


def test_neither_library_is_imported_with_manual_bp_and_their_lack_is_said_plainly():
    program = """
import sys
import manual_bp, manual_bp.interop
assert "flax" not in sys.modules and "equinox" not in sys.modules
for name in ("flax", "equinox"):
    sys.modules[name] = None
    try:
        __import__(f"manual_bp.interop.{name}")
    except ImportError as error:
        print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for name, line in zip(("flax", "equinox"), run.stdout.splitlines(), strict=True):
        assert line == (
            f"manual_bp.interop.{name} needs {name}, which isn't installed: "
            f"pip install 'manual_bp[interop]', or pip install {name}."
        )
