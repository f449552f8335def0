"""Run by test_scale.py in a process of its own, with 8 virtual devices: prints what was judged.

Everything is compared with the program of one device, run with error bounds. A bound holds for any
order of summation, so for whatever order the devices add in.
"""

import dataclasses
import json
from collections import Counter

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
from verify.scale.collectives import LAYOUTS, cases, collectives, total
from verify.scale.meshes import auto_mesh, batch, fully_sharded, replicated

M = 16
RNG = np.random.default_rng(0)
DATA = auto_mesh(data=8)
ROWS = batch(DATA)
FOUND = {}
"""By the name of a check: "ok", or what is wrong."""


def with_bounds(function, *args):
    """The results of one device by name, each with its bound."""
    return trace(lambda *args: flat("d", function(*args)), *args).run(args, BOUNDS)


def judge(name, expected, found):
    """Whether results are those of one device."""
    ours = {
        key: Bounded(np.asarray(each), expected[key].bound) for key, each in flat("d", found).items()
    }
    verdict = within_bounds(ours, expected)
    FOUND[name] = "ok" if verdict.ok and verdict.entries else str(verdict)


def classes(units, shape):
    return RNG.integers(0, units, shape)


# --- gradients on meshes, and their collectives ------------------------------------------------


def widened(case):
    """A case with numbers in float64."""
    wide = jnp.float64 if case.x.dtype == jnp.float32 else case.x.dtype
    return dataclasses.replace(case, x=jax.ShapeDtypeStruct(case.x.shape, wide))


def on_meshes():
    for case in map(widened, cases()):
        x = RNG.normal(size=case.x.shape)
        if case.x.dtype == jnp.int32:
            x = classes(8, case.x.shape).astype(np.int32)
        y = classes(8, case.y.shape).astype(np.int32)
        params = draw_params(RNG, case.network, jnp.asarray(x))
        params = jax.tree.map(lambda leaf, like: np.asarray(leaf, like.dtype), params, case.params)
        expected = with_bounds(case.by_hand, params, x, y)
        for layout in LAYOUTS:
            program, theirs = (
                layout.compiled(step, case) for step in (case.by_hand, case.by_autodiff)
            )
            given = jax.tree.map(jax.device_put, (params, x, y), program.input_shardings[0])
            found = program(*given)
            name = f"{case.name}, {layout.name}"
            judge(name, expected, found)
            places = layout.place(params, given[1].sharding.mesh)
            FOUND[f"{name}: gradients where params are"] = (
                "ok" if jax.tree.map(lambda leaf: leaf.sharding, found[1]) == places else "elsewhere"
            )
            a, b = (total(collectives(each.as_text())) for each in (program, theirs))
            FOUND[f"{name}: collectives"] = "ok" if a.count <= b.count else f"{a}, jax.grad {b}"
            FOUND[f"{name}: bytes"] = "ok" if a.bytes <= b.bytes else f"{a}, jax.grad {b}"


on_meshes()
print(json.dumps(FOUND))
