"""What no spec can say of BatchNorm: devices, masks that hide anything, statistics in training."""

import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_bp as mbp
from manual_bp.layers.batch_norm import Params, Statistics
from verify import judges
from verify.arithmetic.rounding import Bounded
from verify.interpreter import trace
from verify.judges import BOUNDS, same, within_bounds
from verify.rules import flat

RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 3, 2)) + 2
DOUT = RNG.normal(size=X.shape)
MASK = np.array([True, False, True, True, False, True, True, False])
PARAMS = Params(RNG.normal(size=2), RNG.normal(size=2))


def everything(layer, params, x, dout, **taken):
    out, residuals = layer.forward(params, x, **taken)
    dparams, dx = layer.backward(params, residuals, dout)
    return {"out": out, "dparams": dparams, "dx": dx, "observed": layer.observe(residuals)}


# --- devices --------------------------------------------------------------------------------


def over_parts(layer, params, x, dout, *mask):
    """The batch in four parts along an axis of vmap; the parts' dparams added."""

    def part(x, dout, *mask):
        return everything(layer, params, x, dout, **dict(zip(layer.takes, mask, strict=True)))

    split = [each.reshape(4, 2, *each.shape[1:]) for each in (x, dout, *mask)]
    found = jax.vmap(part, axis_name="parts")(*split)
    return {
        "out": found["out"].reshape(x.shape),
        "dparams": jax.tree.map(lambda leaf: leaf.sum(0), found["dparams"]),
        "dx": found["dx"].reshape(x.shape),
        "observed": jax.tree.map(lambda leaf: leaf[0], found["observed"]),
    }


@pytest.mark.parametrize("masked", [False, True])
def test_parts_along_an_axis_are_one_batch(masked):
    whole, parts = (mbp.BatchNorm(masked=masked, axis_name=name) for name in (None, "parts"))
    args = (PARAMS, X, DOUT, MASK)[: 4 if masked else 3]

    def at_once(params, x, dout, *mask):
        return everything(whole, params, x, dout, **dict(zip(whole.takes, mask, strict=True)))

    named = lambda *args: flat("d", at_once(*args))  # noqa: E731
    expected = trace(named, *args).run(args, BOUNDS)

    def judged(layer):
        with jax.enable_x64(True):
            found = flat("d", over_parts(layer, *jax.tree.map(jnp.asarray, args)))
        # A bound holds for any order of summation, so for a sum of the parts' sums.
        ours = {name: Bounded(np.asarray(v), expected[name].bound) for name, v in found.items()}
        return within_bounds(ours, expected)

    assert judged(parts).ok, judged(parts)
    assert not judged(whole).ok  # without the axis each part has statistics of its own


def test_one_position_on_each_of_several_devices_is_a_batch():
    layer = mbp.BatchNorm(axis_name="parts")
    params = jax.tree.map(jnp.asarray, PARAMS)
    each = jnp.asarray(X[:, :1])  # eight parts of one position
    out, _ = jax.vmap(lambda x: layer.forward(params, x), axis_name="parts")(each)
    assert out.shape == each.shape
    assert (out != params.shift).all()


ON_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import manual_bp as mbp
from verify.arithmetic.rounding import Bounded
from verify.interpreter import trace
from verify.judges import BOUNDS, within_bounds
from verify.rules import flat

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(1)
x, y = rng.normal(size=(16, 3)) + 5, rng.normal(size=(16, 2))
one, many = (
    mbp.sequential(mbp.Dense(4, mbp.tanh), mbp.BatchNorm(axis_name=name), mbp.Dense(2))
    for name in (None, "devices")
)
params = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape), one.init(jax.random.key(0), jnp.asarray(x))
)

def step(network):
    def run(params, x, y):
        found = mbp.manual_pass(params, x, y, network=network, loss=mbp.SquaredError())
        return found.loss, found.grads, found.observed
    return run

def named(found):
    return flat("d", found)

program = trace(lambda *args: named(step(one)(*args)), params, x, y)
bounds = program.run((params, x, y), BOUNDS)

def judge(what, found):
    # A bound holds for any order of summation, so for whatever order the devices add in.
    ours = {
        name: Bounded(np.asarray(each), bounds[name].bound) for name, each in named(found).items()
    }
    verdict = within_bounds(ours, bounds)
    print(what, "ok" if verdict.ok else verdict)

mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
assert len(jax.devices()) == 8
rows = NamedSharding(mesh, P("devices"))
sharded = jax.device_put(x, rows), jax.device_put(y, rows)
judge("jit", jax.jit(step(one))(params, *sharded))
for check in (True, False):
    def local(*args, network=many):
        loss, grads, observed = step(network)(*args)
        mean = lambda tree: jax.lax.pmean(tree, "devices")
        return mean(loss), mean(grads), mean(observed)
    def on_devices(network):
        return jax.jit(jax.shard_map(
            lambda *args: local(*args, network=network), mesh=mesh,
            in_specs=(P(), P("devices"), P("devices")), out_specs=P(), check_vma=check,
        ))
    judge(f"shard_map, check_vma={check}", on_devices(many)(params, *sharded))
judge("without axis_name", on_devices(one)(params, *sharded))
"""


def test_sharded_batches_give_the_gradient_of_one_device():
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ON_DEVICES],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["jit ok", "shard_map, check_vma=True ok", "shard_map, check_vma=False ok"]
    assert lines[3].startswith("without axis_name Verdict(ok=False")


# --- masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("anything", [1e30, np.inf, np.nan])
def test_what_does_not_count_changes_nothing_and_gets_nothing(anything):
    layer = mbp.BatchNorm(masked=True)
    x, dout, mask = jnp.asarray(X), jnp.asarray(DOUT), jnp.asarray(MASK)
    params, hidden = jax.tree.map(jnp.asarray, PARAMS), ~mask[:, None, None]
    expected = everything(layer, params, x, dout, mask=mask)
    found = everything(
        layer,
        params,
        jnp.where(hidden, anything, x),
        jnp.where(hidden, anything, dout),
        mask=mask,
    )
    chex.assert_trees_all_equal(found, expected)
    for name in ("out", "dx"):
        assert (found[name][~MASK] == 0).all()
        assert (found[name][MASK] != 0).any()


def test_a_mask_is_the_batch_without_the_rest():
    masked, plain = mbp.BatchNorm(masked=True), mbp.BatchNorm()
    frozen = masked.inference()
    statistics = Statistics(np.array([1.0, 2.0]), np.array([0.5, 3.0]))

    mask = np.arange(8) < 5

    def with_mask(params, x, dout):
        found = everything(masked, params, x, dout, mask=mask)
        out, residuals = frozen.forward(params, x, statistics=statistics, mask=mask)
        dparams, dx = frozen.backward(params, residuals, dout)
        frozen_found = {"out": out[:5], "dparams": dparams, "dx": dx[:5]}
        return found | {"out": found["out"][:5], "dx": found["dx"][:5]}, frozen_found

    def without(params, x, dout):
        x, dout = x[:5], dout[:5]
        out, residuals = plain.inference().forward(params, x, statistics=statistics)
        dparams, dx = plain.inference().backward(params, residuals, dout)
        return everything(plain, params, x, dout), {"out": out, "dparams": dparams, "dx": dx}

    verdict = same(with_mask, without, PARAMS, X, DOUT)
    assert verdict.ok, verdict


def test_one_position_that_counts_is_finite_and_none_is_nan():
    layer, params = mbp.BatchNorm(masked=True), jax.tree.map(jnp.asarray, PARAMS)
    x, dout = jnp.asarray(X[:, 0]), jnp.asarray(DOUT[:, 0])
    one = everything(layer, params, x, dout, mask=jnp.arange(8) == 3)
    np.testing.assert_array_equal(one["out"][3], params.shift)
    np.testing.assert_array_equal(one["observed"], (x[3], jnp.zeros(2)))
    assert (one["dx"] == 0).all() and (one["dparams"].scale == 0).all()
    none = everything(layer, params, x, dout, mask=jnp.zeros(8, bool))
    assert jnp.isnan(jnp.stack([*none["observed"], none["dparams"].scale])).all()


# --- statistics -----------------------------------------------------------------------------

NETWORK = mbp.sequential(mbp.Dense(4, mbp.tanh), mbp.skip(mbp.BatchNorm()), mbp.Dense(2))


def test_statistics_are_observed_averaged_and_used_by_the_same_params():
    x, y = jnp.asarray(X[:, 0]), jnp.asarray(DOUT[:, 0])
    params = NETWORK.init(jax.random.key(0), x)
    step = mbp.manual_pass(params, x, y, network=NETWORK, loss=mbp.SquaredError())
    statistics = optax.incremental_update(step.observed, step.observed, 0.1)
    chex.assert_trees_all_equal_shapes(statistics, step.observed)
    frozen = NETWORK.inference()
    assert frozen.takes == ("statistics",)
    grads = mbp.manual_grads(
        params, x, y, network=frozen, loss=mbp.SquaredError(), statistics=step.observed
    )
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert frozen.inference() == frozen

    def both(params, x):
        out, _ = NETWORK.forward(params, x)
        return out, out

    def frozen_on_its_own_batch(params, x):
        _, residuals = NETWORK.forward(params, x)
        out, _ = NETWORK.inference().forward(params, x, statistics=NETWORK.observe(residuals))
        return out, mbp.predict(params, x, network=NETWORK, statistics=NETWORK.observe(residuals))

    assert same(both, frozen_on_its_own_batch, params, x, judge=judges.digits).ok


def test_statistics_and_sums_are_wide_in_half_precision():
    layer = mbp.BatchNorm()
    x = jnp.asarray(np.arange(2**14)[:, None] % 2 + 300, jnp.float16)  # sums beyond float16
    params = layer.init(jax.random.key(0), x)
    out, residuals = layer.forward(params, x)
    mean, variance = layer.observe(residuals)
    assert mean.dtype == variance.dtype == jnp.float32
    assert (mean, variance) == (300.5, 0.25)
    assert out.dtype == params.scale.dtype == jnp.float16
