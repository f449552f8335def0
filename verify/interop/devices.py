"""Where JAX may put a function, on eight devices: meshes under jit, and shard_map.

Run in a process with eight virtual devices, in float64. The gradient of the same numbers on one
device has bounds that hold for any order of summation, so for whatever order devices add in: each
entry must lie within them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from verify import judges
from verify.arithmetic import Arithmetic
from verify.arithmetic.rounding import Bounded
from verify.interop.contexts import gradient
from verify.interop.rows import Function, Row
from verify.interpreter import trace
from verify.judges import BOUNDS, RATIONAL, Verdict, within_bounds
from verify.rules import flat

Arrays = dict[str, Any]


def auto(f: Function, row: Row) -> Arrays:
    """Auto axes: XLA divides the work. Examples over all devices, parameters on each."""
    return _under_jit(f, row, _mesh((8,), AxisType.Auto))


def auto_tensor(f: Function, row: Row) -> Arrays:
    """Auto axes: examples over four parts, each array of parameters over two."""
    return _under_jit(f, row, _mesh((4, 2), AxisType.Auto))


def explicit(f: Function, row: Row) -> Arrays:
    """Explicit axes, the default of jax.make_mesh: types say where arrays are."""
    mesh = _mesh((8,), AxisType.Explicit)
    with jax.set_mesh(mesh):
        return _under_jit(f, row, mesh, typed=True)


def explicit_tensor(f: Function, row: Row) -> Arrays:
    """Explicit axes: examples over four parts, each array of parameters over two."""
    mesh = _mesh((4, 2), AxisType.Explicit)
    with jax.set_mesh(mesh):
        return _under_jit(f, row, mesh, typed=True)


def shard_map(f: Function, row: Row, *, check_vma: bool = True) -> Arrays:
    """jax.grad inside of shard_map, on each device's own examples."""

    def local(d: Any, c: Any, dout: Any) -> Any:
        grads = gradient(f)(d, c, dout)
        if check_vma:  # jax.grad has summed already: parameters are the same on all devices
            return grads
        return {
            name: each if name in row.divided else jax.lax.psum(each, "data")
            for name, each in grads.items()
        }

    mesh, specs = _mesh((8,), AxisType.Auto), _specs(row)
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=check_vma
    )
    return _run(mapped, _placed(row, mesh, specs), mesh)


def outside(f: Function, row: Row, *, check_vma: bool = True) -> Arrays:
    """jax.grad of a function that is a shard_map itself."""
    mesh, specs = _mesh((8,), AxisType.Auto), _specs(row)

    def total(d: Any, c: Any, dout: Any) -> jax.Array:
        part = lambda d, c, dout: jax.lax.psum((f(d, c) * dout).sum(), "data")  # noqa: E731
        mapped = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
        return mapped(d, c, dout)

    args = _placed(row, mesh, specs)
    return _run(jax.grad(total), args, mesh)


DEVICES: dict[str, Callable[[Function, Row], Arrays]] = {
    "Auto mesh": auto,
    "Auto tensor": auto_tensor,
    "Explicit mesh": explicit,
    "Explicit tensor": explicit_tensor,
    "shard_map": shard_map,
    "shard_map unchecked": functools.partial(shard_map, check_vma=False),
    "grad(shard_map)": outside,
    "grad(shard_map) unchecked": functools.partial(outside, check_vma=False),
}


def why_not(context: str, row: Row) -> str:
    """Why a context doesn't apply to a row, "" where it does."""
    if "shard_map" in context and "key" in row.c:
        return "each device would draw its own mask from the key that all have"
    return ""


def judge(row: Row, context: str) -> Verdict:
    """Our gradient on several devices against autodiff's on one, within the bounds of both: none
    where it is exact.
    """
    arithmetic = RATIONAL if row.exact else BOUNDS
    ours, theirs = _on_one_device(row, arithmetic)
    f = row.on_devices if row.on_devices and "shard_map" in context else row.ours
    found = DEVICES[context](f, row)
    held = {name: Bounded(np.asarray(each), ours[name].bound) for name, each in found.items()}
    return within_bounds(held, theirs)


def _on_one_device(row: Row, arithmetic: Arithmetic) -> tuple[Arrays, Arrays]:
    """The gradient on one device, ours and autodiff's."""
    args = row.d, row.c, row.dout
    programs = (
        trace(lambda *args, f=f: flat("d", gradient(f)(*args)), *args)
        for f in (row.ours, row.theirs)
    )
    ours, theirs = (
        {name: judges.as_bounded(each) for name, each in program.run(args, arithmetic).items()}
        for program in programs
    )
    return ours, theirs


def _mesh(shape: tuple[int, ...], kind: AxisType) -> Mesh:
    names = ("data", "tensor")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


def _specs(row: Row, parts: int = 1) -> tuple[Any, Any, Any]:
    """How (d, c, dout) are divided: examples over "data", other arrays over "tensor" if they can.

    Args:
        row: whose arguments they are.
        parts: how many parts there are along "tensor".
    """

    def spec(name: str, leaf: Any) -> Any:
        if name in row.divided:
            return P("data")
        if parts == 1 or name == "key":
            return P()
        fits = [size % parts == 0 and size > 0 for size in leaf.shape]
        return P(*("tensor" if axis == _first(fits) else None for axis in range(leaf.ndim)))

    def of(named: Any) -> Any:
        return {
            name: jax.tree.map(functools.partial(spec, name), each) for name, each in named.items()
        }

    return of(row.d), of(row.c), P("data") if row.dout.ndim else P()


def _first(fits: list[bool]) -> int:
    return fits.index(True) if any(fits) else -1


def _placed(row: Row, mesh: Mesh, specs: Any) -> Any:
    def put(leaf: Any, spec: Any) -> jax.Array:
        # each process gives the parts that its own devices hold
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, (dict(row.d), dict(row.c), row.dout), specs)


def _under_jit(f: Function, row: Row, mesh: Mesh, typed: bool = False) -> Arrays:
    """The gradient under jit; with Explicit axes each has its primal's type."""
    specs = _specs(row, mesh.shape.get("tensor", 1))
    args = _placed(row, mesh, specs)
    if not typed:
        return _run(gradient(f), args, mesh)
    grads = jax.jit(gradient(f))(*args)
    primals = dict(zip(flat("d", grads), jax.tree.leaves(args[0]), strict=True))
    for name, each in flat("d", grads).items():
        if not each.sharding.is_equivalent_to(primals[name].sharding, each.ndim):
            raise AssertionError(
                f"{name} is {each.sharding.spec}, its primal {primals[name].sharding.spec}"
            )
    return flat("d", grads)


def _run(function: Callable[..., Any], args: Any, mesh: Mesh) -> Arrays:
    """Its results under jit; where there are several processes, each holds all of them."""
    whole = NamedSharding(mesh, P()) if jax.process_count() > 1 else None
    return flat("d", jax.jit(function, out_shardings=whole)(*args))
