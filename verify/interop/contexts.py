"""Where JAX may put a function, on one device: each context makes gradients of it in its own way.

A context takes a function and its row and returns a program of (d, c, dout). It is given ours and
theirs alike; both programs are traced and judged by error bounds, as all gradients are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from verify import judges
from verify.interop.rows import Function, Row
from verify.judges import Verdict
from verify.rules import Rule, flat

FEW = 3
"""Numbers in which a whole Hessian is formed."""
Program = Callable[[Any, Any, Any], dict[str, Any]]


def gradient(f: Function) -> Callable[[Any, Any, Any], Any]:
    """The gradient of Σ dout · f for all that is differentiated."""
    return lambda d, c, dout: jax.grad(lambda d: (f(d, c) * dout).sum())(d)


def jit(f: Function, row: Row) -> Program:
    """jax.grad under jax.jit."""
    return lambda *args: flat("d", jax.jit(gradient(f))(*args))


def value(f: Function, row: Row) -> Program:
    """f itself, and beside its gradient."""

    def program(d: Any, c: Any, dout: Any) -> dict[str, Any]:
        total = lambda d: (f(d, c) * dout).sum()  # noqa: E731
        J, grads = jax.value_and_grad(total)(d)
        return {"out": f(d, c), "J": J, **flat("d", grads)}

    return program


def vmap(f: Function, row: Row) -> Program:
    """The gradient of examples that vmap hands to f one by one."""

    def one_by_one(d: Any, c: Any) -> Any:
        whole, parts = _divide(row, d, c)

        def one(parts: Any) -> Any:
            given = {**whole, **jax.tree.map(lambda leaf: leaf[None], parts)}
            out = f(*_split(row, given))
            return out[0] if out.ndim else out

        return jax.vmap(one)(parts)

    return lambda *args: flat("d", gradient(one_by_one)(*args))


def per_example(f: Function, row: Row) -> Program:
    """vmap of the gradient: one for each example."""

    def program(d: Any, c: Any, dout: Any) -> dict[str, Any]:
        whole, parts = _divide(row, d, c)

        def one(parts: Any, dout: Any) -> Any:
            given = {**whole, **jax.tree.map(lambda leaf: leaf[None], parts)}
            return gradient(f)(*_split(row, given), dout)

        douts = dout if dout.ndim else jnp.broadcast_to(dout, (_examples(row),))
        return flat("d", jax.vmap(one)(parts, douts[:, None] if dout.ndim else douts))

    return program


def several_params(f: Function, row: Row) -> Program:
    """vmap over three sets of parameters, or of whatever examples share."""

    def program(d: Any, c: Any, dout: Any) -> dict[str, Any]:
        shared = {name: each for name, each in d.items() if name not in row.divided}
        sets = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf, -leaf]), shared)
        one = lambda shared: gradient(f)({**d, **shared}, c, dout)  # noqa: E731
        return flat("d", jax.vmap(one)(sets))

    return program


def checkpoint(f: Function, row: Row) -> Program:
    """Under jax.checkpoint: computed again for the backward pass."""
    return lambda *args: flat("d", gradient(jax.checkpoint(f))(*args))


def scan(f: Function, row: Row) -> Program:
    """In the body of lax.scan."""

    def program(d: Any, c: Any, dout: Any) -> dict[str, Any]:
        def total(d: Any) -> Any:
            def step(J: Any, factor: Any) -> Any:
                return J + (f(jax.tree.map(lambda leaf: factor * leaf, d), c) * dout).sum(), None

            return jax.lax.scan(step, jnp.zeros((), dout.dtype), jnp.array([1.0, 0.5]))[0]

        return flat("d", jax.grad(total)(d))

    return program


def linearize(f: Function, row: Row) -> Program:
    """Linearised: the map's transpose, and the gradient's map; the map itself with forward mode."""

    def program(d: Any, c: Any, dout: Any) -> dict[str, Any]:
        J, along = jax.linearize(lambda d: (f(d, c) * dout).sum(), d)
        (grads,) = jax.linear_transpose(along, d)(jnp.ones_like(J))
        found = {"J": J, **flat("d", grads)}
        if row.tangents:
            found["d along"] = along(_direction(d))
        return found

    return program


def twice(f: Function, row: Row) -> Program:
    """The gradient of the gradient: reverse mode over reverse mode."""

    def program(d: Any, c: Any, dout: Any) -> dict[str, Any]:
        def along(d: Any) -> Any:
            grads = gradient(f)(d, c, dout)
            pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(_direction(d)), strict=True)
            return sum((each * v).sum() for each, v in pairs)

        return flat("d", jax.grad(along)(d))

    return program


def hessian(f: Function, row: Row) -> Program:
    """jax.hessian in a few numbers of the smallest array, and a Hessian-vector product of all:
    forward over reverse.
    """

    def program(d: Any, c: Any, dout: Any) -> dict[str, Any]:
        leaves, structure = jax.tree.flatten(d)
        smallest = min(range(len(leaves)), key=lambda index: leaves[index].size)

        few = leaves[smallest].ravel()[:FEW]

        def total(few: Any) -> Any:
            rest = leaves[smallest].ravel()[FEW:]
            leaf = jnp.concatenate([few, rest]).reshape(leaves[smallest].shape)
            changed = [*leaves[:smallest], leaf, *leaves[smallest + 1 :]]
            return (f(jax.tree.unflatten(structure, changed), c) * dout).sum()

        _, along = jax.jvp(lambda d: gradient(f)(d, c, dout), (d,), (_direction(d),))
        return {"d2": jax.hessian(total)(few), **flat("d", along)}

    return program


CONTEXTS: dict[str, Callable[[Function, Row], Program]] = {
    "value": value,
    "jit": jit,
    "vmap": vmap,
    "vmap params": several_params,
    "vmap(grad)": per_example,
    "checkpoint": checkpoint,
    "scan": scan,
    "linearize": linearize,
    "grad(grad)": twice,
    "hessian": hessian,
}


def judge(row: Row, context: str) -> Verdict:
    """Ours against autodiff's: by bounds; by growing precision where they aren't finite.

    A row whose maxima may always tie, within bounds, by fractions.
    """
    make = CONTEXTS[context]
    args = row.d, row.c, row.dout
    rule = Rule(row.name, row.family, make(row.ours, row), make(row.theirs, row), draw=_undrawn)
    if row.exact:
        return judges.rational(rule, args)
    verdict = judges.bounds(rule, args)
    return judges.digits(rule, args) if verdict.why == judges.UNBOUNDED else verdict


def why_not(context: str, row: Row) -> str:
    """Why a context doesn't apply to a row, "" where it does."""
    if context in ("vmap", "vmap(grad)") and row.mixes:
        return "a batch of one example has no statistics: vmap over examples isn't meant"
    if context in ("vmap", "vmap(grad)") and "x" in row.c and "key" in row.c:
        return "each example would draw its own"
    shared = [row.d[name] for name in row.d if name not in row.divided]
    if context == "vmap params" and not jax.tree.leaves(shared):
        return "there are no parameters"
    return ""


def _undrawn(*_: Any) -> Any:
    raise NotImplementedError("a row of the matrix has its arguments")


def _direction(d: Any) -> Any:
    """A fixed direction for each array, without zeros; exact in any arithmetic."""

    def of(leaf: Any) -> jax.Array:
        numbers = np.resize([0.5, -1.5, 2.0, 1.0, -0.5], leaf.size)
        return jnp.asarray(numbers.reshape(leaf.shape), leaf.dtype)

    return jax.tree.map(of, d)


def _examples(row: Row) -> int:
    first = next(name for name in sorted(row.divided) if jax.tree.leaves({**row.d, **row.c}[name]))
    return len(jax.tree.leaves({**row.d, **row.c}[first])[0])


def _divide(row: Row, d: Any, c: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what examples share, what has a part for each)."""
    named = {**d, **c}
    whole = {name: each for name, each in named.items() if name not in row.divided}
    return whole, {name: named[name] for name in named if name in row.divided}


def _split(row: Row, named: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(d, c) again."""
    return {name: named[name] for name in row.d}, {name: named[name] for name in row.c}
