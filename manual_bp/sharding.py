"""Where arrays live: on which devices of a mesh each part of them is, as their types say.

Three kinds of meshes meet the same formulas:

- Auto axes, under jit: types say nothing of them, and XLA divides the work.
- Explicit axes: an array's type has a sharding, each operation has a rule for that of its result,
  and a contraction over divided axes must be told (`out_sharding`).
- Manual axes, inside shard_map: the code of one device. With check_vma the type says along which
  axes the values of devices differ, along which the array is *varying*.

A gradient is of its parameter's type. So where an error is summed over examples that are divided,
what is left to do is to bring the sum to the parameter's place.

On a mesh with Explicit axes the layers keep to this:

    out = x Wᵀ   along its leading axes as x, along its last as the rows of W
    dW           as W is, whatever was summed
    dx           as x is; dout is expected as out is
    b, γ, β      moved to where the axis is that they are added to or multiplied with

A mesh axis divides an array but once. So if x's examples and W are divided along the same one, as
fully sharded parameters are, out is divided by examples, and W is gathered. What runs along an
axis, a scan along time or steps, a window along space, softmax along keys, has it whole on each
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

P = jax.sharding.PartitionSpec
Tree = Any


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
    missing = varying(kind) - varying(mine)
    if missing:
        cotangent = jax.lax.pcast(cotangent, tuple(sorted(missing)), to="varying")
    # A primal on no mesh, such as one made before the mesh was set, asks for no place on it.
    if kind.sharding.mesh.axis_names and jax.typeof(cotangent).sharding != kind.sharding:
        cotangent = jax.sharding.reshard(cotangent, kind.sharding)
    return cotangent


# --- Explicit axes: where results lie ----------------------------------------------------------
#
# All of these leave a program without Explicit axes as it is: they say None, or return what they
# were given.


def axes_of(x: Any) -> tuple[Any, ...]:
    """For each axis of x the mesh axes, by name, along which it is divided; None for none."""
    return tuple(jax.typeof(x).sharding.spec)


def together(*axes: Any) -> tuple[str, ...]:
    """The mesh axes of several such entries as one: for an axis divided along all of them."""
    named = [each if isinstance(each, tuple) else (each,) for each in axes if each is not None]
    return tuple(dict.fromkeys(name for names in named for name in names))


def along(
    x: Any, *axes: Any, shape: tuple[int, ...] | None = None
) -> jax.sharding.NamedSharding | None:
    """The sharding, on the mesh of x, of an array whose axes are divided along these mesh axes.

    An array can be divided along a mesh axis but once: where one is named again, the first place
    keeps it. So in x @ W with the examples and a fully sharded W divided along the same axis, the
    product is divided by examples, and W is gathered.

    Args:
        x: an array, or several: the first one on a mesh with Explicit axes says which mesh.
        axes: for each axis of the result as `axes_of` has them.
        shape: of the result; mesh axes of which a size isn't a multiple don't divide it, the last
            ones of an entry first.

    Returns:
        The sharding, or None where x's mesh has no Explicit axes: for `out_sharding=`.

    Example:
        >>> mesh = jax.make_mesh((1, 1), ("data", "tensor"))
        >>> with jax.set_mesh(mesh):
        ...     tuple(along(jnp.ones((2, 3)), "data", ("data", "tensor")).spec)
        ('data', 'tensor')
        >>> along(jnp.ones((2, 3)), "data", None) is None
        True
    """
    meshes = (jax.typeof(each).sharding.mesh for each in (x if isinstance(x, tuple) else (x,)))
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None:
        return None
    used: set[str] = set()
    found = []
    for number, names in enumerate(axes):
        names = tuple(name for name in together(names) if name not in used)
        while shape is not None and shape[number] % math.prod(mesh.shape[each] for each in names):
            names = names[:-1]
        used.update(names)
        found.append(names[0] if len(names) == 1 else names or None)
    return jax.sharding.NamedSharding(mesh, P(*found))


def as_divided(like: Any, *among: Any) -> jax.sharding.NamedSharding | None:
    """The sharding of an array like this one, on its mesh or on that of these: for `out_sharding=`.

    None where there are no Explicit axes.
    """
    return along((like, *among), *axes_of(like))


def matmul(x: Any, y: Any, like: Any = None) -> jax.Array:
    """x @ y, divided as the rows of x and the columns of y are, or as this array is.

    Args:
        x: (..., n).
        y: (n, p).
        like: (..., p), an array.

    Returns:
        (..., p).
    """
    rows = along((x, y), *axes_of(x)[:-1], axes_of(y)[-1])
    return jnp.matmul(x, y, out_sharding=rows if like is None else as_divided(like, x, y))


def by_rows(x: Any, W: Any) -> jax.Array:
    """x Wᵀ, divided as x is by examples and W by its rows.

    W is contracted as it is, not transposed first: where a mesh divides it, what is gathered for
    this product serves backward too. `tensordot` is the product that `einsum` makes, traced in a
    tenth of the time: of a deep network's first gradient einsum took a quarter.

    Args:
        x: (..., n_in).
        W: (n_out, n_in).

    Returns:
        (..., n_out).
    """
    rows = along((x, W), *axes_of(x)[:-1], axes_of(W)[0])
    return jnp.tensordot(x, W, (-1, -1), out_sharding=rows)


def reshape(x: jax.Array, shape: tuple[int, ...], *axes: Any) -> jax.Array:
    """x.reshape(shape), divided along these mesh axes; those that aren't named are not divided."""
    axes = (*axes, *(None,) * (len(shape) - len(axes)))
    return jnp.reshape(x, shape, out_sharding=along(x, *axes, shape=shape))


def sharded_like(x: Any, like: Any) -> Any:
    """x where this array of the same shape is."""
    return _moved(x, as_divided(like, x))


def tree_sharded_like(tree: Tree, like: Tree) -> Tree:
    """Each leaf where the same leaf of the other tree is: gradients where parameters are."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(leaves, jax.tree.leaves(like), strict=True)
    return jax.tree.unflatten(structure, [sharded_like(*pair) for pair in pairs])


def zeros_like(x: Any, dtype: Any = None) -> Any:
    """Zeros where x is, also for a mesh that nobody has set: jnp.zeros_like forgets it there."""
    return sharded_like(jnp.zeros_like(x, dtype), x)


def beside(param: Any, x: Any) -> Any:
    """A parameter placed for an element-wise operation with x: divided as x's last axes are.

    Args:
        param: (C,) or more axes, as many as x's last ones.
        x: (..., C).
    """
    axes = axes_of(x)
    return _moved(param, along((x, param), *axes[len(axes) - jnp.ndim(param) :]))


def divided(x: Any, *axes: Any) -> Any:
    """x divided along these mesh axes, an entry for each axis of x, as far as its shape allows."""
    return _moved(x, along(x, *axes, shape=x.shape))


def undivided(x: Any, *whole: int) -> Any:
    """x with these of its axes whole on every device: those that a scan or a window moves along."""
    axes = list(axes_of(x))
    for axis in whole:
        axes[axis] = None
    return divided(x, *axes)


def alike(arrays: list[Any]) -> list[Any]:
    """Arrays divided as the first one is; along the last axis, if all are divided alike there."""
    (*first, last), *others = map(axes_of, arrays)
    if any(axes[-1] != last for axes in others):
        last = None
    return [_moved(each, along(tuple(arrays), *first, last)) for each in arrays]


def whole(params: Tree) -> Tree:
    """Each parameter whole on every device."""
    return jax.tree.map(lambda leaf: _moved(leaf, along(leaf, *(None,) * jnp.ndim(leaf))), params)


def as_carry(x: Any, like: Any, *axes: Any) -> Any:
    """x as a scan's first carry, where what is computed of this array is added to it.

    Args:
        x: the carry.
        like: varying along the axes of shard_map along which the carry will be.
        axes: the mesh axes along which the carry's are divided.
    """
    missing = varying(jax.typeof(like)) - varying(jax.typeof(x))
    if missing:
        x = jax.lax.pcast(x, tuple(sorted(missing)), to="varying")
    return _moved(x, along((like, x), *axes))


def zeros(shape: tuple[int, ...], dtype: Any, *like: Any) -> jax.Array:
    """Zeros for a scan's carry, to which what is computed of these trees is added.

    Inside shard_map with check_vma they are varying as that is.
    """
    leaves = [jax.typeof(leaf) for leaf in jax.tree.leaves(like)]
    axes = frozenset[str]().union(*map(varying, leaves))
    start = jnp.zeros(shape, dtype)
    return jax.lax.pcast(start, tuple(sorted(axes)), to="varying") if axes else start


def over_parts(
    function: Callable[..., tuple[Tree, Tree]], params: Tree, *rows: Any
) -> tuple[Tree, Tree]:
    """Sums over rows, and results for each row: each device computes those of its own rows.

    For loops over rows, which would send each row to all devices where rows are divided. The sums
    of the devices are added once, after the loop.

    Args:
        function: function(params, *rows) -> (sums, results), where results have rows first.
        params: whole on every device.
        rows: arrays with as many rows, divided as those of the first of them are. Along other axes
            they are divided as before.

    Returns:
        (sums, results).
    """
    names = axes_of(rows[0])[0]
    out, axes = along(rows[0], names), together(names)
    if out is None or not axes:
        return function(params, *rows)

    def local(params: Tree, *rows: Any) -> tuple[Tree, Tree]:
        sums, results = function(params, *rows)
        return jax.lax.psum(sums, axes), results

    each = [_moved(row, along(rows[0], names, *axes_of(row)[1:])) for row in rows]
    return jax.shard_map(
        local,
        mesh=out.mesh,
        in_specs=(P(), *(P(names),) * len(each)),
        out_specs=(P(), P(names)),
        axis_names=set(axes),
    )(params, *each)


def _moved(x: Any, to: jax.sharding.NamedSharding | None) -> Any:
    """x with this sharding, if it has another one."""
    if to is None or to == jax.typeof(x).sharding:
        return x
    return jax.sharding.reshard(x, to)
