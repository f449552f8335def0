"""Run by test_scale.py in a process of its own, with 8 virtual devices: prints what was judged.

Everything is compared with the program of one device, run with error bounds. A bound holds for any
order of summation, so for whatever order the devices add in.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import manual_bp as mbp
from verify.arithmetic.rounding import Bounded
from verify.interpreter import trace
from verify.judges import BOUNDS, within_bounds
from verify.networks import draw_params
from verify.rules import flat
from verify.scale.collectives import collectives, total
from verify.scale.comparison import comparisons
from verify.scale.meshes import auto_mesh, batch, fully_sharded, replicated

M = 16
RNG = np.random.default_rng(0)
DATA = auto_mesh(data=8)
ROWS = batch(DATA)
FOUND = {}
"""By section and name of a check: "ok", or what is wrong."""


def found(section, name, ok, wrong):
    FOUND.setdefault(section, {})[name] = "ok" if ok else str(wrong)


def with_bounds(function, *args):
    """The results of one device by name, each with its bound."""
    return trace(lambda *args: flat("d", function(*args)), *args).run(args, BOUNDS)


def judged(expected, results):
    """Whether results are those of one device."""
    ours = {
        name: Bounded(np.asarray(each), expected[name].bound)
        for name, each in flat("d", results).items()
    }
    verdict = within_bounds(ours, expected)
    return verdict.ok and verdict.entries > 0, verdict


def classes(units, shape):
    return RNG.integers(0, units, shape).astype(np.int32)


def problem(network, shape, *, tokens=0):
    """params, x, and classes 0, 1, 2: sorted, so that the devices have different ones."""
    x = classes(tokens, shape) if tokens else RNG.normal(size=shape)
    y = np.sort(classes(3, shape if tokens else shape[:1]), axis=0)
    return draw_params(RNG, network, jnp.asarray(x)), x, y


def some_zeros(shape):
    return RNG.normal(size=shape) ** 2 * (RNG.random(shape) < 0.7)


# --- gradients on meshes, and their collectives ------------------------------------------------


def on_meshes():
    args, expected = {}, {}
    for each in comparisons():
        case = each.case
        of_texts = case.x.dtype == jnp.int32
        wide = case.x.dtype if of_texts else jnp.float64
        case = dataclasses.replace(case, x=jax.ShapeDtypeStruct(case.x.shape, wide))
        if case.name not in args:
            x = classes(8, case.x.shape) if of_texts else RNG.normal(size=case.x.shape)
            drawn = draw_params(RNG, case.network, jnp.asarray(x))
            params = jax.tree.map(lambda to, like: np.asarray(to, like.dtype), drawn, case.params)
            args[case.name] = params, x, classes(8, case.y.shape)
            expected[case.name] = with_bounds(case.by_hand, *args[case.name])
        name = f"{case.name}, {each.layout.name}"
        program = each.layout.compiled(case.by_hand, case)
        places = program.input_shardings[0]
        loss, grads = program(*jax.tree.map(jax.device_put, args[case.name], places))
        found("gradients", name, *judged(expected[case.name], (loss, grads)))
        lie = [
            leaf.sharding.is_equivalent_to(place, leaf.ndim)
            for leaf, place in zip(jax.tree.leaves(grads), jax.tree.leaves(places[0]), strict=True)
        ]
        found("gradients", f"{name}: where params are", all(lie), lie)
        ours = total(collectives(program.as_text()))
        theirs = each._replace(case=case).theirs()
        found("collectives", f"{name}: number", ours.count <= theirs.count, (ours, theirs))
        # Whether all tokens exist is one number more: if not, dW is NaN.
        allowed = theirs.bytes + 4 * of_texts
        found("collectives", f"{name}: bytes", ours.bytes <= allowed, (ours, theirs))


def known_programs():
    def counted(name, body, expected, out=ROWS.spec):
        x = jax.ShapeDtypeStruct((64, 16), jnp.float32)
        mapped = jax.shard_map(body, mesh=DATA, in_specs=P("data"), out_specs=out, check_vma=False)
        ours = collectives(jax.jit(mapped).lower(x).compile().as_text())
        ours = {kind: (each.count, each.bytes) for kind, each in ours.items()}
        found("known programs", name, ours == expected, ours)

    part = 8 * 16 * 4  # bytes of what a device has
    ring = [(i, (i + 1) % 8) for i in range(8)]
    over = functools.partial(functools.partial, axis_name="data")
    scattered = over(jax.lax.psum_scatter, scatter_dimension=0)
    exchanged = over(jax.lax.all_to_all, split_axis=0, concat_axis=0)
    counted("nothing", jnp.sin, {})
    counted("psum", over(jax.lax.psum), {"all-reduce": (1, part)}, P())
    counted("all_gather", over(jax.lax.all_gather), {"all-gather": (1, 8 * part)})
    counted("psum_scatter", scattered, {"reduce-scatter": (1, part)})
    counted("all_to_all", exchanged, {"all-to-all": (1, part)})
    counted("ppermute", over(jax.lax.ppermute, perm=ring), {"collective-permute": (1, part)})

    def scanned(x):
        def step(x, _):
            return jax.lax.fori_loop(0, 2, lambda _, x: jnp.sin(jax.lax.psum(x, "data")), x), None

        return jax.lax.scan(step, x, None, length=5)[0]

    counted("psum in a loop in a loop", scanned, {"all-reduce": (10, 10 * part)})


# --- sums over a divided batch, under jit -------------------------------------------------------

MLP = mbp.mlp([4, 8, 3], hidden=mbp.tanh)
TEXT = mbp.sequential(mbp.Embedding(5, 8), mbp.RNN(8), mbp.Dense(3))


def under_jit(section, name, function, params, *examples, places=(replicated,)):
    """One device's results against those of a divided batch, params at these places."""
    expected, program = with_bounds(function, params, *examples), jax.jit(function)
    divided = jax.device_put(examples, ROWS)
    for place in places:
        results = program(jax.device_put(params, place(params, DATA)), *divided)
        found(section, f"{name}, {place.__name__}", *judged(expected, results))


def sums():
    by_hand = functools.partial(
        under_jit, "sums over the batch", places=(replicated, fully_sharded)
    )

    def grads(network, **settings):
        def run(params, x, y, weights=None):
            step = mbp.manual_pass(params, x, y, network=network, weights=weights, **settings)
            return step.loss, step.grads, step.observed

        return run

    by_hand("weights (m,)", grads(MLP), *problem(MLP, (M, 4)), some_zeros(M))
    params, tokens, y = problem(TEXT, (M, 3), tokens=5)
    weights = some_zeros((M, 3))
    by_hand("weights (m, T)", grads(TEXT), params, tokens, y, weights)
    none = np.where(weights == 0, -1, tokens)
    by_hand("no token where the weight is 0", grads(TEXT), params, none, y, weights)
    ignoring = mbp.SoftmaxCrossEntropy(ignored_class=0)
    by_hand("ignored class", grads(MLP, loss=ignoring), *problem(MLP, (M, 4)))
    body = mbp.sequential(mbp.Embedding(5, 8), mbp.Dense(8, mbp.tanh))
    fused = mbp.LinearCrossEntropy(5, chunk=8, ignored_class=0, shared=(0, "W"))
    by_hand("fused head", grads(body, loss=fused), *problem(body, (M, 2), tokens=5))
    normed = mbp.sequential(mbp.Dense(8), mbp.BatchNorm(), mbp.tanh, mbp.Dense(3))
    by_hand("batch statistics", grads(normed), *problem(normed, (M, 4)))
    masked = mbp.sequential(mbp.Dense(8), mbp.BatchNorm(masked=True), mbp.Dense(3))

    def with_mask(params, x, y, weights):
        return grads(masked, mask=weights != 0)(params, x, y, weights)

    by_hand("masked batch statistics", with_mask, *problem(masked, (M, 4)), some_zeros(M))
    dropping = mbp.sequential(mbp.Dense(8), mbp.Dropout(0.5), mbp.Dense(3))

    def with_key(params, x, y):
        return grads(dropping, key=jax.random.key(1))(params, x, y)

    by_hand("dropout", with_key, *problem(dropping, (M, 4)))

    def clipped(params, x, y, weights):
        return mbp.clipped_pass(params, x, y, clip=0.5, network=MLP, weights=weights)

    given = (*problem(MLP, (M, 4)), some_zeros(M))
    by_hand("clipped sum", clipped, *given)

    def noise(params, x, y, weights):
        drawn = {"noise_multiplier": 0.5, "noise_key": jax.random.key(2)}
        return mbp.clipped_grads(params, x, y, clip=0.5, network=MLP, weights=0 * weights, **drawn)

    one, many = jax.jit(noise)(*given), jax.jit(noise)(given[0], *jax.device_put(given[1:], ROWS))
    alike = jax.tree.map(np.array_equal, one, many)
    found("sums over the batch", "noise, to the last bit", jax.tree.all(alike), alike)


def signals():
    given = (*problem(MLP, (M, 4)), some_zeros(M) + 0.1)
    feedback = mbp.FeedbackAlignment().init(jax.random.key(0), *given[:2], network=MLP)

    def every(params, x, y, weights):
        of = functools.partial
        settings = {"network": MLP, "weights": weights}
        each = {
            "grads": mbp.per_example_grads,
            "squared norms": mbp.per_example_squared_norms,
            "gram": mbp.gradient_gram,
            "moments": mbp.gradient_moments,
            "noise": mbp.gradient_noise,
            "fisher": mbp.empirical_fisher,
            "ggn": mbp.ggn_diagonal,
            "kfac": mbp.kfac_factors,
            "transported": of(
                mbp.transported_grads, transport=mbp.FeedbackAlignment(), feedback=feedback
            ),
        }
        results = {name: signal(params, x, y, **settings) for name, signal in each.items()}
        results["diagnostics"] = mbp.diagnosed_pass(params, x, y, **settings).diagnostics
        results["ggn v"] = mbp.ggn_vector_product(params, params, x, y, **settings)
        results["H v"] = mbp.hessian_vector_product(params, params, x, y, **settings)
        return results

    under_jit("signals", "all", every, *given, places=(replicated, fully_sharded))


# --- inside shard_map ---------------------------------------------------------------------------


def in_shard_map():
    params, x, y = problem(MLP, (M, 4))
    weights = some_zeros(M)
    ignoring = mbp.SoftmaxCrossEntropy(ignored_class=0)
    step = functools.partial(mbp.manual_value_and_grads, network=MLP)
    total_of = functools.partial(jax.lax.psum, axis_name="data")
    mean_of = functools.partial(jax.lax.pmean, axis_name="data")

    def of_mean(params, x, y, weights):
        del weights
        return step(params, x, y)

    def of_weights(params, x, y, weights):
        return step(params, x, y, weights=weights)

    def of_counted(params, x, y, weights):
        del weights
        return step(params, x, y, loss=ignoring)

    def of_shares(params, x, y, weights):
        """One over the number that count on all devices, for those that do."""
        del weights
        counted = (y != 0).astype(x.dtype)
        return step(params, x, y, loss=ignoring, weights=counted / total_of(counted.sum()))

    def of_clipped(params, x, y, weights):
        del weights
        return mbp.clipped_grads(params, x, y, clip=0.5, network=MLP)

    expected = {
        "mean": with_bounds(of_mean, params, x, y, weights),
        "weights": with_bounds(of_weights, params, x, y, weights),
        "ignored class": with_bounds(of_counted, params, x, y, weights),
        "clipped": with_bounds(of_clipped, params, x, y, weights),
    }
    right = (
        ("mean", of_mean, mean_of),
        ("weights", of_weights, total_of),
        ("ignored class", of_shares, total_of),
        ("clipped", of_clipped, total_of),
    )
    wrong = (
        ("mean", of_mean, total_of),
        ("weights", of_weights, mean_of),
        ("ignored class", of_counted, mean_of),
        ("clipped", of_clipped, mean_of),
    )
    specs = {"mesh": DATA, "in_specs": (P(), P("data"), P("data"), P("data")), "out_specs": P()}
    for check_vma in (True, False):

        @jax.jit
        @functools.partial(jax.shard_map, **specs, check_vma=check_vma)
        def on_devices(*given):
            return [[over(local(*given)) for _, local, over in each] for each in (right, wrong)]

        for each, good, results in zip(
            (right, wrong), (True, False), on_devices(params, x, y, weights), strict=True
        ):
            for (name, _, over), result in zip(each, results, strict=True):
                ok, verdict = judged(expected[name], result)
                name = f"{name} by {over.func.__name__}, check_vma={check_vma}"
                found("shard_map" if good else "shard_map, the other sum", name, ok, verdict)


for section in (on_meshes, known_programs, sums, signals, in_shard_map):
    section()
print(json.dumps(FOUND))
