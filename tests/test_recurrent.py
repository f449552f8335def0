"""Recurrent layers: pieces of a sequence, padding, both directions, long ones, low precision."""

import os
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_bp as mbp
from manual_bp.layers import lstm
from verify import judges, peers, rules, wrong_formulas
from verify.levels import low_precision
from verify.rules import generator
from verify.wrong_formulas import recurrent as mistakes

KINDS = {
    "RNN": lambda **settings: mbp.RNN(2, **settings),
    "LSTM": lambda **settings: mbp.LSTM(2, **settings),
    "GRU": lambda **settings: mbp.GRU(2, **settings),
    "LinearRecurrence": lambda **settings: mbp.LinearRecurrence(**settings),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def drawn(layer, shape, seed=0):
    """Params, x and dout of a layer that keeps (m, T)."""
    rng = generator(seed)
    x = rng.normal(size=shape)
    params = rules.draw_params(rng, layer, x)
    out = rng.normal(size=rules.prediction_shape(layer, params, x))
    return params, x, out


def gradients(layer, params, x, dout, **taken):
    out, residuals = layer.forward(params, x, **taken)
    dparams, dx, dtaken = layer.backward_taken(params, residuals, dout)
    return {"out": out, "dparams": dparams, "dx": dx, "dtaken": dtaken}


def added(first, *others):
    for other in others:
        first = jax.tree.map(jnp.add, first, other)
    return first


# --- a sequence in pieces -------------------------------------------------------------------


@EVERY_KIND
def test_two_pieces_with_the_state_handed_on_are_the_whole_sequence(kind):
    layer = KINDS[kind](stateful=True)

    def whole(params, x, dout):
        found = gradients(layer, params, x, dout, state=None)
        return {name: found[name] for name in ("out", "dparams", "dx")}

    def pieces(params, x, dout):
        def first(params, x):
            out, residuals = layer.forward(params, x, state=None)
            return out, layer.observe(residuals)

        (out, state), pull = jax.vjp(first, params, x[:, :2])
        rest = gradients(layer, params, x[:, 2:], dout[:, 2:], state=state)
        dparams, dx = pull((dout[:, :2], rest["dtaken"]["state"]))
        return {
            "out": jnp.concatenate([out, rest["out"]], 1),
            "dparams": added(dparams, rest["dparams"]),
            "dx": jnp.concatenate([dx, rest["dx"]], 1),
        }

    verdict = judges.same(whole, pieces, *drawn(layer, (2, 5, 2)))
    assert verdict.ok, verdict


def test_what_a_network_observed_is_the_state_for_what_follows():
    network = mbp.sequential(
        mbp.LSTM(3, stateful=True), mbp.GRU(2, stateful=True), mbp.Dense(2, mbp.tanh)
    )

    def whole(params, x):
        return network.forward(params, x, state=None)[0][:, 3:]

    def pieces(params, x):
        _, residuals = network.forward(params, x[:, :3], state=None)
        return network.forward(params, x[:, 3:], state=network.observe(residuals))[0]

    params, x, _ = drawn(network, (2, 4, 3))
    verdict = judges.same(whole, pieces, params, x)
    assert verdict.ok, verdict


@EVERY_KIND
def test_no_state_is_a_state_of_zeros(kind):
    layer = KINDS[kind](stateful=True)
    params, x, dout = drawn(layer, (2, 1, 2))
    _, residuals = layer.forward(params, x, state=None)
    zeros = jax.tree.map(jnp.zeros_like, layer.observe(residuals))
    verdict = judges.same(
        lambda *args: gradients(layer, *args, state=None),
        lambda *args: gradients(layer, *args, state=zeros),
        params,
        x,
        dout,
        judge=judges.bounds,
    )
    assert verdict.ok, verdict


@EVERY_KIND
def test_one_step_and_many_are_right(kind):
    for shape in ((3, 1, 2), (2, 2, 2), (1, 6, 1)):
        rule = rules.of_layer(KINDS[kind](stateful=True, reverse=shape[1] == 2), shape)
        verdict = judges.bounds(rule, rule.draw(generator(1), "normal"))
        assert verdict.ok, verdict


def test_the_state_keeps_its_dtype_and_a_sum_of_many_terms_isnt_kept_in_half_precision():
    layer, x = mbp.LSTM(2, stateful=True), jnp.ones((1, 3, 2), jnp.bfloat16)
    params = layer.init(jax.random.key(0), x)
    out, residuals = layer.forward(params, x, state=None)
    assert out.dtype == jnp.bfloat16
    assert layer.observe(residuals).c.dtype == jnp.float32
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), layer.observe(residuals))
    found = gradients(layer, params, x, out, state=half)
    assert {leaf.dtype for leaf in found["dtaken"]["state"]} == {jnp.dtype(jnp.float16)}
    assert found["dx"].dtype == found["dparams"].W.dtype == jnp.bfloat16


# --- padding --------------------------------------------------------------------------------

LENGTHS = (3, 1, 4)


def padded(layer, params, x, dout):
    mask = jnp.arange(x.shape[1]) < jnp.array(LENGTHS)[:, None]
    return gradients(layer, params, x, jnp.where(mask[..., None], dout, 0), mask=mask)


def alone(layer, params, x, dout):
    """Each example with its own length; what is after it repeats its last output."""
    each = [
        gradients(layer, params, x[i : i + 1, :length], dout[i : i + 1, :length])
        for i, length in enumerate(LENGTHS)
    ]
    steps = x.shape[1]

    def fill(values, mode):
        missing = [(0, 0), (0, steps - values.shape[1]), (0, 0)]
        return jnp.pad(values, missing, mode=mode)

    return {
        "out": jnp.concatenate([fill(one["out"], "edge") for one in each]),
        "dparams": added(*(one["dparams"] for one in each)),
        "dx": jnp.concatenate([fill(one["dx"], "constant") for one in each]),
        "dtaken": {},
    }


@EVERY_KIND
def test_a_padded_batch_gives_each_example_what_its_own_length_gives(kind):
    masked, plain = KINDS[kind](masked=True), KINDS[kind]()
    verdict = judges.same(
        lambda *args: padded(masked, *args),
        lambda *args: alone(plain, *args),
        *drawn(plain, (3, 5, 2)),
    )
    assert verdict.ok, verdict


@EVERY_KIND
def test_both_directions_ignore_padding(kind):
    masked, plain = mbp.bidirectional(KINDS[kind](masked=True)), mbp.bidirectional(KINDS[kind]())

    def real(found):
        mask = jnp.arange(5) < jnp.array(LENGTHS)[:, None]
        return found | {"out": jnp.where(mask[..., None], found["out"], 0)}

    verdict = judges.same(
        lambda *args: real(padded(masked, *args)),
        lambda *args: real(alone(plain, *args)),
        *drawn(plain, (3, 5, 2)),
    )
    assert verdict.ok, verdict


@EVERY_KIND
@pytest.mark.parametrize("reverse", [False, True])
def test_whatever_is_in_the_padding_changes_nothing(kind, reverse):
    layer = KINDS[kind](masked=True, reverse=reverse)
    params, x, dout = jax.tree.map(jnp.asarray, drawn(layer, (3, 4, 2)))
    mask = jnp.arange(4) < jnp.array(LENGTHS)[:, None]
    spoilt = jnp.where(mask[..., None], x, jnp.nan)
    right = gradients(layer, params, x, dout, mask=mask)
    jax.tree.map(
        np.testing.assert_array_equal, gradients(layer, params, spoilt, dout, mask=mask), right
    )
    assert jnp.all(jnp.where(mask[..., None], 0, right["dx"]) == 0)


def test_the_last_step_of_a_padded_sequence_is_its_last_real_one():
    network = mbp.sequential(mbp.GRU(3, masked=True), mbp.LastStep(), mbp.Dense(2))
    x = jax.random.normal(jax.random.key(0), (3, 5, 2))
    params = network.init(jax.random.key(1), x)
    mask = jnp.arange(5) < jnp.array(LENGTHS)[:, None]
    outs, _ = mbp.GRU(3).forward(params[0], x)
    last = outs[jnp.arange(3), jnp.array(LENGTHS) - 1]
    found, _ = mbp.sequential(*network.layers[:2]).forward(params[:2], x, mask=mask)
    np.testing.assert_array_equal(found, last)


# --- both directions ------------------------------------------------------------------------


def test_both_directions_have_states_and_params_of_their_own():
    layer = mbp.bidirectional(mbp.LSTM(3, stateful=True))
    assert repr(layer) == "parallel(LSTM(3, stateful=True), LSTM(3, stateful=True, reverse=True))"
    x = jax.random.normal(jax.random.key(0), (2, 4, 3))
    params = layer.init(jax.random.key(1), x)
    assert jnp.any(params[0].W != params[1].W)
    out, residuals = layer.forward(params, x, state=None)
    forwards, backwards = layer.observe(residuals)
    np.testing.assert_array_equal(out[:, -1, :3], forwards.h)
    np.testing.assert_array_equal(out[:, 0, 3:], backwards.h)
    found = gradients(layer, params, x, out, state=(forwards, backwards))
    assert [each.c.shape for each in found["dtaken"]["state"]] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("layer", [mbp.Dense(3), mbp.sequential(mbp.GRU(3)), mbp.GRU, None])
def test_other_layers_have_no_direction(layer):
    with pytest.raises(TypeError, match="bidirectional: expected a recurrent layer, RNN, LSTM"):
        mbp.bidirectional(layer)


def test_what_runs_in_reverse_is_not_made_bidirectional():
    with pytest.raises(ValueError, match=r"GRU\(3, reverse=True\) runs in reverse already"):
        mbp.bidirectional(mbp.GRU(3, reverse=True))


# --- long sequences, low precision ----------------------------------------------------------


@EVERY_KIND
def test_long_sequences_are_finite_and_right(kind):
    rule = rules.of_layer(KINDS[kind](stateful=True), (1, 200, 2))
    params, *rest = rule.draw(generator(0), "normal")
    params = jax.tree.map(lambda leaf: leaf / 2, params)  # or bounds grow from step to step
    verdict = judges.bounds(rule, (params, *rest))
    assert verdict.ok, verdict
    found = rule.manual(*jax.tree.map(jnp.asarray, rule.draw(generator(0), "large")))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))


CELLS = {type(peer.ours): peer for peer in peers.peers() if peer.name.endswith("from a state")}


@pytest.mark.parametrize("kind", [mbp.LSTM, mbp.GRU, mbp.RNN], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_half_precision_over_many_steps_beside_flax(kind, dtype):
    peer = CELLS[kind]
    rule = rules.of_layer(peer.ours, (2, 40, 3), theirs=peer.theirs)
    (found,) = low_precision.ratios([rule], dtype)
    assert found.ratio <= 2, found.ratio


# --- the judges see --------------------------------------------------------------------------


def test_a_state_gradient_that_is_dropped_is_seen():
    rule = rules.of_layer(mbp.LSTM(2, stateful=True), (2, 3, 2))
    right = lstm.LSTM.backward_taken

    def dropped(layer, *args):
        *rest, dtaken = right(layer, *args)
        return *rest, jax.tree.map(jnp.zeros_like, dtaken)

    with mock.patch.object(lstm.LSTM, "backward_taken", dropped):
        verdict = judges.bounds(rule, rule.draw(generator(0), "normal"))
    assert verdict.first_wrong.startswith("dstate")


@pytest.mark.parametrize("kind", mistakes.RIGHT, ids=lambda kind: kind.__name__)
def test_the_loops_of_wrong_formulas_are_right_without_a_mistake(kind):
    with mistakes.RIGHT[kind]():
        for case in mistakes.CASES[kind]:
            assert wrong_formulas.judge(case).ok


# --- several devices ------------------------------------------------------------------------

ON_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import manual_bp as mbp
from verify.arithmetic.rounding import Bounded
from verify.interpreter import trace
from verify.judges import BOUNDS, within_bounds
from verify.rules import flat

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(4, 3, 2)), rng.integers(2, size=(4, 3))
mask = rng.integers(2, size=(4, 3)) > 0
bodies = (
    mbp.RNN(2), mbp.LSTM(2), mbp.GRU(2), mbp.LinearRecurrence(),
    mbp.LSTM(2, masked=True), mbp.GRU(2, reverse=True), mbp.bidirectional(mbp.GRU(2)),
)
rows = P("devices")
for body in bodies:
    network = mbp.sequential(body, mbp.Dense(2))
    drawn = network.init(jax.random.key(0), jnp.asarray(x))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), drawn)
    args = (params, x, y, {"mask": mask} if network.takes else {})

    def grads(params, x, y, taken, network=network):
        return mbp.manual_grads(params, x, y, network=network, **taken)

    bounds = trace(lambda *args: flat("d", grads(*args)), *args).run(args, BOUNDS)

    def judge(what, found):
        # A bound holds for any order of summation, so for whatever order the devices add in.
        ours = {
            name: Bounded(np.asarray(each), bounds[name].bound)
            for name, each in flat("d", found).items()
        }
        verdict = within_bounds(ours, bounds)
        print(what, body, "ok" if verdict.ok else verdict)

    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,))
    judge("shard_map", jax.jit(jax.shard_map(
        lambda *args: jax.lax.pmean(grads(*args), "devices"),
        mesh=mesh, in_specs=(P(), rows, rows, rows), out_specs=P(),
    ))(*args))
    explicit = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(explicit):
        sharded = jax.device_put(args[1:], NamedSharding(explicit, rows))
        judge("explicit", grads(jax.device_put(params, NamedSharding(explicit, P())), *sharded))
"""


def test_sharded_batches_give_the_gradient_of_one_device():
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICES],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 14
    assert all(line.endswith(" ok") for line in lines), lines


# --- dtypes ---------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("wide", ["x", "W", "U", "b"])
def test_params_and_inputs_of_different_widths_promote(kind, wide):
    layer = KINDS[kind]()
    params, x, _ = drawn(layer, (2, 3, 2))
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    if wide in narrow._fields:
        narrow = narrow._replace(**{wide: narrow._asdict()[wide].astype(jnp.float32)})
    x = jnp.asarray(x, jnp.float32 if wide == "x" else jnp.bfloat16)
    out, residuals = layer.forward(narrow, x)
    dparams, dx = layer.backward(narrow, residuals, jnp.ones_like(out))
    assert out.dtype == jnp.result_type(x, *narrow)
    assert dx.dtype == x.dtype
    assert [leaf.dtype for leaf in dparams] == [leaf.dtype for leaf in narrow]


# --- networks of them -----------------------------------------------------------------------


def test_a_state_of_one_layer_is_not_taken_for_those_of_two():
    network = mbp.sequential(mbp.GRU(2, stateful=True), mbp.Dense(2))
    x = jnp.ones((4, 3, 2))
    params = network.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="state must be nested like the network: a tuple of 2"):
        network.forward(params, x, state=lstm.State(jnp.ones((4, 2)), jnp.ones((4, 2))))


def test_nested_layers_with_a_mask_for_each_step_or_for_any_are_drawn_for_steps():
    inner = mbp.sequential(mbp.BatchNorm(masked=True), mbp.LSTM(3, masked=True))
    network = mbp.sequential(inner, mbp.Dense(2))
    params = network.init(jax.random.key(0), jnp.ones((4, 3, 2)))
    assert params[1].W.shape == (2, 3)


@pytest.mark.parametrize(
    ("taken", "says"),
    [
        ({"mask": [[True] * 3] * 2, "state": None}, ("mask[0][0] must be an array, got bool",)),
        (
            {"mask": np.ones((2, 3), bool), "state": 0.0},
            ("state must be an array, got float: 0.0",),
        ),
    ],
)
def test_what_is_taken_must_hold_arrays(taken, says):
    layer, x = mbp.GRU(2, masked=True, stateful=True), jnp.ones((2, 3, 2))
    params = layer.init(jax.random.key(0), x)
    for call in (
        lambda: mbp.manual_grads(params, x, x, network=layer, loss=mbp.SquaredError(), **taken),
        lambda: mbp.predict(params, x, network=layer, **taken),
    ):
        with pytest.raises(TypeError) as error:
            call()
        for text in says:
            assert text in str(error.value)


def test_a_state_where_a_layer_takes_none_is_an_error():
    lstm = mbp.LSTM(3, stateful=True)
    network, x = mbp.sequential(lstm, mbp.BatchNorm(), mbp.Dense(2)), jnp.ones((2, 4, 5))
    params = network.init(jax.random.key(0), x)
    observed = network.observe(network.forward(params, x, state=None)[1])
    network.forward(params, x, state=observed)
    with pytest.raises(ValueError, match=r"arrays at 2, for Dense\(2\), which takes no state"):
        network.forward(params, x, state=(*observed[:2], jnp.ones(3)))
