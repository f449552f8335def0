"""Diagnostics: the gradient isn't touched, names and shares are right, errors say what to do."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp.activation import Activation
from manual_bp.signals import diagnostics
from verify import judges, specs
from verify.networks import draw_params, draw_taken, opened, prediction_shape
from verify.rules import generator, inputs
from verify.signals import diagnostics as definition
from verify.specs import activations

X = jax.random.normal(jax.random.key(1), (5, 4))
Y = jnp.arange(5) % 3
IMAGES = jax.random.normal(jax.random.key(1), (5, 6, 6, 1))
TOKENS = jax.random.randint(jax.random.key(1), (5, 6), 0, 7)
NETWORK = mbp.mlp([4, 6, 3])
PARAMS = NETWORK.init(jax.random.key(0), X)


@pytest.mark.parametrize(
    ("network", "x", "y"),
    [
        (NETWORK, X, Y),
        (mbp.mlp([4, 6, 3], hidden=mbp.tanh), X, Y),
        (mbp.sequential(mbp.Dense(6), mbp.BatchNorm(), mbp.silu, mbp.Dense(3)), X, Y),
        (mbp.gpt(7, context=6, width=8, heads=2), TOKENS, TOKENS),
    ],
    ids=["relu", "tanh", "batch norm", "gpt"],
)
def test_the_pass_is_manual_pass_bit_for_bit(network, x, y):
    assert_same_pass(network, x, y)


@pytest.mark.parametrize(
    ("network", "x", "y", "taken"),
    [(mbp.lenet(3), IMAGES, Y, {}), (mbp.char_lstm(7, width=5), TOKENS, TOKENS, {"state": None})],
    ids=["lenet", "lstm"],
)
def test_the_pass_is_manual_pass_operation_for_operation(network, x, y, taken):
    """Compiled, sums over places may be taken in another order: XLA fuses them otherwise."""
    with jax.disable_jit():
        assert_same_pass(network, x, y, **taken)


def assert_same_pass(network, x, y, **taken):
    params = network.init(jax.random.key(0), x)
    ours = mbp.diagnosed_pass(params, x, y, network=network, **taken)._asdict()
    plain = mbp.manual_pass(params, x, y, network=network, **taken)._asdict()
    for name in ("loss", "prediction", "grads", "observed"):
        jax.tree.map(np.testing.assert_array_equal, ours[name], plain[name])


@pytest.mark.parametrize("rule", definition.rules(), ids=str)
def test_equal_to_the_definition(rule):
    for kind in ("normal", "ties"):
        args = rule.draw(generator(0), kind)
        judge = judges.rational if rule.omitted else judges.bounds
        assert judge(rule, args).ok, judge(rule, args)


@pytest.mark.parametrize("spec", specs.layers(), ids=lambda spec: repr(spec.samples[0][0]))
def test_every_layer_has_an_error_norm_and_a_norm_for_each_parameter(spec):
    layer, shape = spec.samples[0]
    rng = generator(0)
    x = inputs(rng, "normal", layer, shape, spec)
    params = draw_params(rng, layer, x)
    taken = opened(draw_taken(rng, layer, layer, params, x))
    y = np.zeros(prediction_shape(layer, params, x))
    run = functools.partial(mbp.diagnosed_pass, network=layer, loss=mbp.SquaredError())
    step = jax.eval_shape(lambda params: run(params, x, y, **taken), params)
    norms = mbp.gradient_norms(params, network=layer)
    places = {place or "1" for place, _ in definition.leaves(layer)}
    shown = [name for name in step.diagnostics if name.startswith("norm/")]
    assert {name.lstrip("norm/dZut") for name in shown} == places
    assert len(norms) == len(jax.tree.leaves(params))


def test_a_repeated_layer_has_an_entry_for_each_step():
    network = mbp.sequential(
        mbp.stack(mbp.skip(mbp.Dense(4, mbp.hard_tanh)), 3), mbp.reversible(mbp.tanh, mbp.tanh, 2)
    )
    params = network.init(jax.random.key(0), X)
    step = mbp.diagnosed_pass(params, X, X, network=network, loss=mbp.SquaredError())
    shapes = {name: each.shape for name, each in step.diagnostics.items()}
    assert shapes == {
        **dict.fromkeys(("norm/dZ1.1.1", "dead/A1.1.1", "saturated/A1.1.1"), (3,)),
        **dict.fromkeys(("norm/dout2.1", "saturated/out2.1"), (2,)),
        **dict.fromkeys(("norm/dout2.2", "saturated/out2.2"), (2,)),
    }
    norms = mbp.gradient_norms(step.grads, network=network)
    assert {name: each.shape for name, each in norms.items()} == {
        "norm/dW1.1.1": (3,),
        "norm/db1.1.1": (3,),
    }


@pytest.mark.parametrize(
    ("g", "edge"),
    [(mbp.sigmoid, 4.127), (mbp.tanh, 2.0634), (mbp.softsign, 3.0), (mbp.hard_sigmoid, 3.0)],
    ids=str,
)
def test_an_entry_is_saturated_beyond_the_edge(g, edge):
    z = jnp.array([[0.0, edge - 1e-3, 1 - edge], [edge + 1e-3, -edge - 1e-3, 50.0]])
    step = mbp.diagnosed_pass((), z, z, network=g, loss=mbp.SquaredError())
    assert step.diagnostics["saturated/out1"] == 0.5


def test_a_unit_is_dead_when_no_example_and_no_place_passes():
    z = jnp.array([[[-1.0, 0.0, 1.0, -2.0], [-1.0, 0.0, 1.0, -2.0]]] * 3).at[2, 1, 0].set(0.5)
    step = mbp.diagnosed_pass((), z, z, network=mbp.relu, loss=mbp.SquaredError())
    assert step.diagnostics["dead/out1"] == 0.5
    assert "saturated/out1" not in step.diagnostics


def test_the_table_has_every_activation_and_its_largest_slope():
    assert set(diagnostics.SLOPES) == set(activations.JAX)
    z = np.linspace(-50, 50, 1_000_001, dtype=np.float32)
    for kind, known in diagnostics.SLOPES.items():
        g = kind()
        size = np.abs(np.asarray(g.derivative(jnp.asarray(z))))
        if known.largest(g) < np.inf:
            # infinite ends are neared: squareplus's by 1/z²
            assert f"{size.max():.2f}" == f"{known.largest(g):.2f}", g
            assert f"{size.max():.4f}" <= f"{known.largest(g):.4f}", g
        flat = (size[:-1] == 0) & (size[1:] == 0) & (np.abs(z[1:]) < 10)  # not underflow
        assert flat.any() == known.flat, g
    assert diagnostics.SLOPES[type(mbp.elu(2.0))].largest(mbp.elu(2.0)) == 2


def test_norms_and_shares_are_of_float32_in_half_precision():
    x, params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (X, PARAMS))
    step = mbp.diagnosed_pass(params, x, Y, network=NETWORK)
    ratios = mbp.update_ratios(params, step.grads, network=NETWORK)
    for each in (*step.diagnostics.values(), *ratios.values()):
        assert each.dtype == jnp.float32


def test_a_step_is_measured_in_the_callers_jit():
    @jax.jit
    def step(params):
        found = mbp.diagnosed_pass(params, X, Y, network=NETWORK)
        updated = jax.tree.map(lambda leaf, grad: leaf - 0.5 * grad, params, found.grads)
        norms = mbp.gradient_norms(found.grads, network=NETWORK)
        return found.diagnostics, norms, mbp.update_ratios(params, updated, network=NETWORK)

    shown, norms, ratios = step(PARAMS)
    assert set(shown) == {"norm/dZ1", "dead/A1", "norm/dZ2"}
    assert list(norms) == ["norm/dW1", "norm/dW2", "norm/db1", "norm/db2"]  # jit sorts them
    assert ratios["update/W1"] > 0 and np.isposinf(ratios["update/b1"])


def test_ratios_of_what_is_0_or_does_not_move():
    params = ((jnp.ones((1, 2)), jnp.zeros(1)),)
    assert set(map(float, mbp.update_ratios(params, params).values())) == {0}
    moved = ((jnp.ones((1, 2)), jnp.ones(1)),)
    assert mbp.update_ratios(params, moved)["update/b1"] == np.inf


def test_parameters_of_the_loss_are_named():
    loss = mbp.LinearCrossEntropy(3)
    params = (PARAMS[:1], loss.init(jax.random.key(1), jnp.ones((5, 6))))
    network = mbp.sequential(mbp.Dense(6, mbp.relu))
    step = mbp.diagnosed_pass(params, X, Y, network=network, loss=loss)
    norms = mbp.gradient_norms(step.grads, network=network, loss=loss)
    assert "norm/dW of the loss" in norms
    assert "update/W of the loss" in mbp.update_ratios(params, params, network=network, loss=loss)


# --- errors ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cubed(Activation):
    def value(self, z):
        return z**3

    def derivative(self, z):
        return 3 * z**2


def test_an_activation_of_ones_own_is_named_and_can_be_entered(monkeypatch):
    run = functools.partial(mbp.diagnosed_pass, (), X, X, network=Cubed(), loss=mbp.SquaredError())
    with pytest.raises(NotImplementedError, match=r"cubed .*SLOPES\[Cubed\] = Slope\("):
        run()
    monkeypatch.setitem(diagnostics.SLOPES, Cubed, diagnostics.Slope(flat=True))
    assert list(run().diagnostics) == ["norm/dout1", "dead/out1"]


def test_what_was_updated_must_be_like_params():
    with pytest.raises(TypeError, match=r"updated must be nested like params.*apply_updates"):
        mbp.update_ratios(PARAMS, PARAMS[:1], network=NETWORK)
    other = jax.tree.map(lambda leaf: leaf[:1], PARAMS)
    with pytest.raises(ValueError, match=r"updated\[0\].W has shape \(1, 4\), expected \(6, 4\)"):
        mbp.update_ratios(PARAMS, other, network=NETWORK)
    with pytest.raises(TypeError, match="must be an array"):
        mbp.gradient_norms(((1.0, 2.0),))
