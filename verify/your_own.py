"""The same judges for anybody's own backward pass: `verify.check` and `verify.check_grads`.

The result says which leaf is wrong, in the order in which a backward pass computes them, what the
likely cause is, and how to see it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from verify import judges
from verify.arithmetic.numpy import Float64
from verify.diagnosis import likely_cause
from verify.judges import Verdict
from verify.levels import low_precision
from verify.rules import Rule, flat, generator

DRAWS = ("given", "near", "rounded")
"""The numbers as given; each off by some percent; and rounded to quarters, so that kinks tie."""


@dataclass(frozen=True)
class Result:
    """What the judges say of a backward pass; true when all of them hold."""

    ok: bool
    judged: tuple[str, ...]
    """What was judged, with the figure of each judge."""
    first_wrong: str = ""
    """The first wrong leaf: "out", "dparams.W", "dparams.0.b", "dx", ..."""
    why: str = ""
    cause: str = ""
    """The likely cause, "" when none of the known ones fits."""
    reproduce: str = ""

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.ok:
            return "ok: " + "; ".join(self.judged)
        lines = [f"WRONG: {self.first_wrong} {self.why}"]
        lines += [f"likely cause: {self.cause}"] if self.cause else []
        return "\n".join([*lines, f"to see it again: {self.reproduce}"])


def check(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    params: Any,
    x: Any,
    *,
    seed: int = 0,
) -> Result:
    """Judge a backward pass: is it the vector-Jacobian product of its forward pass?

        out, residuals = forward(params, x),   dparams, dx = backward(params, residuals, dout)

    Both are traced in float64 and run with error bounds beside jax.vjp of forward, for a random
    dout, at the numbers given, near them, and rounded so that kinks tie; a wrong one differs by
    more than rounding may.

    Args:
        forward: (params, x) -> (out, residuals).
        backward: (params, residuals, dout) -> (dparams, dx).
        params: any tree of arrays; x: any tree of arrays. Floats are perturbed, others kept.
        seed: of dout and the perturbations.

    Returns:
        A Result: true when all held; else it names the first wrong leaf and the likely cause.

    Raises:
        TypeError: when forward or backward doesn't return a pair.

    Source: Higham (2002), Accuracy and Stability of Numerical Algorithms, chapter 3 (the bounds).

    Example:
        >>> def forward(params, x):
        ...     return jnp.tanh(x @ params), (x, jnp.tanh(x @ params))
        >>> def backward(params, residuals, dout):
        ...     x, a = residuals
        ...     dz = dout * (a**2 - 1)
        ...     return x.T @ dz, dz @ params.T
        >>> print(check(forward, backward, jnp.ones((3, 2)), jnp.ones((4, 3))))
        WRONG: dparams differs by more than rounding may
        likely cause: the sign is wrong
        to see it again: verify.check(forward, backward, params, x, seed=0), at the numbers given
    """
    out = _pair(jax.eval_shape(forward, params, x), "forward", "(out, residuals)")[0]

    def manual(params: Any, x: Any, dout: Any) -> dict[str, Any]:
        out, residuals = forward(params, x)
        dparams, dx = _pair(backward(params, residuals, dout), "backward", "(dparams, dx)")
        return {**flat("out", out), **_gradients(dparams, params, dx, x)}

    def autodiff(params: Any, x: Any, dout: Any) -> dict[str, Any]:
        out, pull = jax.vjp(lambda p, v: forward(p, v)[0], params, x)
        return {**flat("out", out), **_gradients(*_beside(pull(dout), (params, x)))}

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        dout = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), out)
        return (*(jax.tree.map(lambda leaf: _moved(rng, kind, leaf), (params, x))), dout)

    rule = Rule("your rule", "your rule", manual, autodiff, draw, cotangent=2)
    return _judge(rule, seed, "verify.check(forward, backward, params, x")


def check_grads(
    manual_fn: Callable[..., Any],
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    seed: int = 0,
) -> Result:
    """Judge a gradient function: is manual_fn(params, *args) the gradient of loss_fn?

        manual_fn(params, *args) = ∂ loss_fn(params, *args) / ∂params

    Args:
        manual_fn: (params, *args) -> gradients nested like params.
        loss_fn: (params, *args) -> the scalar loss.
        params: any tree of arrays.
        *args: whatever both take besides; floating-point arrays are perturbed too.
        seed: of the perturbations.

    Returns:
        A Result, as of `check`.

    Raises:
        TypeError: when the gradients aren't nested like params.

    Source: Higham (2002), Accuracy and Stability of Numerical Algorithms, chapter 3.

    Example:
        >>> def loss(w, x): return jnp.mean((x @ w) ** 2)
        >>> def grads(w, x): return 2 * x.T @ (x @ w)
        >>> print(check_grads(grads, loss, jnp.ones(3), jnp.arange(12.0).reshape(4, 3)))
        WRONG: dparams differs by more than rounding may
        likely cause: it is 4 times the right one: 4 is the size of an axis, is 1/4 missing?
        to see it again: verify.check_grads(manual_fn, loss_fn, params, *args, seed=0), at the
        numbers given
    """
    expected, given = (
        jax.tree.structure(params),
        jax.tree.structure(jax.eval_shape(manual_fn, params, *args)),
    )
    if given != expected:
        raise TypeError(
            f"manual_fn returned {given}, expected gradients nested like params, {expected}"
        )

    def manual(*both: Any) -> dict[str, Any]:
        return flat("dparams", manual_fn(*both))

    def autodiff(*both: Any) -> dict[str, Any]:
        return flat("dparams", jax.grad(loss_fn)(*both))

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        return tuple(jax.tree.map(lambda leaf: _moved(rng, kind, leaf), (params, *args)))

    rule = Rule("your gradient", "your gradient", manual, autodiff, draw)
    return _judge(rule, seed, "verify.check_grads(manual_fn, loss_fn, params, *args")


def _gradients(dparams: Any, params: Any, dx: Any, x: Any) -> dict[str, Any]:
    """The gradients by name, those of integers (tokens, masks) left out: they have none."""
    named = {**flat("dparams", dparams), **flat("dx", dx)}
    of = {**flat("dparams", params), **flat("dx", x)}
    for name in of:
        if name not in named:
            raise TypeError(
                f"backward returned {sorted(named)}, expected gradients nested like params and x, "
                f"{sorted(of)}"
            )
    return {name: each for name, each in named.items() if name not in of or _is_float(of[name])}


def _beside(pulled: Any, primals: Any) -> tuple[Any, ...]:
    return pulled[0], primals[0], pulled[1], primals[1]


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _judge(rule: Rule, seed: int, call: str) -> Result:
    judged = []
    for kind in DRAWS:
        args = rule.draw(generator(seed), kind)
        again = f"{call}, seed={seed}), at the numbers {kind}"
        try:
            verdict = judges.bounds(rule, args)
        except NotImplementedError as unknown:
            verdict, note = _without_interpreter(rule, seed), str(unknown).partition(":")[0]
            if verdict.ok:
                judged.append(f"pooled float32 error over autodiff's {verdict.figure:.2g} ({note})")
                break
            return Result(False, tuple(judged), verdict.first_wrong, verdict.why, "", again)
        if verdict.ok:
            judged.append(f"{kind} {verdict.figure:.2g} of the bound on {verdict.entries} entries")
            continue
        if kind != "given" and not _finite(rule, args):
            judged.append(f"{kind} left out, since autodiff isn't finite there")
            continue
        cause = likely_cause(rule, args, verdict.first_wrong)
        return Result(False, tuple(judged), verdict.first_wrong, verdict.why, cause, again)
    return Result(True, tuple(judged))


def _without_interpreter(rule: Rule, seed: int) -> Verdict:
    """The judge for programs with a primitive that no arithmetic knows: float32 beside float64."""
    return low_precision.against_float64(rule, rule.draw(generator(seed), "given"))


def _finite(rule: Rule, args: tuple[Any, ...]) -> bool:
    results = rule.programs(args)[1].run(args, Float64())
    return all(np.isfinite(each).all() for each in results.values())


def _moved(rng: np.random.Generator, kind: str, leaf: Any) -> Any:
    leaf = np.asarray(leaf)
    if leaf.dtype.kind != "f" and leaf.dtype.name != "bfloat16":
        return leaf
    wide = leaf.astype(np.float64)
    if kind == "near":
        return wide * (1 + 0.1 * rng.normal(size=leaf.shape)) + 1e-3 * rng.normal(size=leaf.shape)
    return np.round(4 * wide) / 4 if kind == "rounded" else wide


def _pair(value: Any, name: str, expected: str) -> Any:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{name} returned {type(value).__name__}, expected the pair {expected}")
    return value
