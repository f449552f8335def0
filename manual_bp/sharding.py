"""Where arrays live: on which devices of a mesh each part of them is, as their types say.

Three kinds of meshes meet the same formulas:

- Auto axes, under jit: types say nothing of them, and XLA divides the work.
- Explicit axes: an array's type has a sharding, each operation has a rule for that of its result,
  and a contraction over divided axes must be told (`out_sharding`).
- Manual axes, inside shard_map: the code of one device. With check_vma the type says along which
  axes the values of devices differ, along which the array is *varying*.

A gradient is of its parameter's type. So where an error is summed over examples that are divided,
what is left to do is to bring the sum to the parameter's place.
"""

from __future__ import annotations

from typing import Any

import jax


def varying(kind: Any) -> frozenset[str]:
    """The axes of shard_map along which arrays of this type differ from device to device.

    Args:
        kind: a type, as jax.typeof returns it.
    """
    return kind.manual_axis_type.varying


def placed_like(cotangent: Any, kind: Any) -> Any:
    """A cotangent as an array of its primal's type: summed over devices, spread, or moved.

    dJ/dv of a v that all devices share, such as a parameter, is the sum of what each device found:

        v̄ = Σ over the axes along which v̄ varies and v doesn't of v̄

    which is the transpose of copying v to all of them.

    Args:
        cotangent: what a backward pass returned.
        kind: its primal's type, as jax.typeof returns it.

    Returns:
        The cotangent, of this type.
    """
    if cotangent.dtype == jax.dtypes.float0:
        return cotangent
    mine = jax.typeof(cotangent)
    shared = varying(mine) - varying(kind)
    if shared:
        cotangent = jax.lax.psum(cotangent, tuple(sorted(shared)))
    alike = varying(kind) - varying(mine)
    if alike:
        cotangent = jax.lax.pcast(cotangent, tuple(sorted(alike)), to="varying")
    if jax.typeof(cotangent).sharding != kind.sharding:
        cotangent = jax.sharding.reshard(cotangent, kind.sharding)
    return cotangent
