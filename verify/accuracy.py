"""How accurate g' is, beside autodiff's, over every decade of |z| and in every floating dtype.

One point says nothing: each formula is the better one at some points. So the error is pooled, the
norm of (g' - truth) over a few hundred random points of a decade, both signs, with the truth in 30
digits. A cell holds if our error is no larger than that of jax.grad of the jax.nn function, or than
that of rounding the truth itself to the dtype, which nobody can improve on. There is no tolerance.

JAX has had two rules for expm1, and with them elu', celu' and selu' have other last digits: in 0.10
its derivative is expm1(z) + 1, in 0.12 it is exp(z). Neither is the better one everywhere: beside
exp(z), the sum has errors up to 10% larger in float32 where 0.1 ≤ |z| < 1, and smaller ones in
float64. So a cell of these with |z| < 1 holds as well if our error is no larger than by the earlier
rule, which with a JAX that has it is autodiff's own. Beyond 1 the sum loses the tail: no judge.

What is judged is g' as the library delivers it: forward, then backward of ones, compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from mpmath import mp

from manual_bp import activations as hand
from manual_bp.activation import Activation
from verify.report import Report
from verify.specs import activations as specs

DIGITS = 30
DTYPES = ("float16", "bfloat16", "float32", "float64")
DECADES = (*range(-6, 5), 8, 18, 30, 37, 150, 300)
"""Decade k is 10^k ≤ |z| < 10^(k+1). Beyond 10⁵ lie only limits, and overflow in squares, cubes."""
POINTS = 200
"""In each decade, of each sign."""
FLAT = 2000
"""Beyond |z| = 2000 whatever has an exponential in it is its limit, but for less than e⁻²⁰⁰⁰."""

JUDGED: tuple[Activation, ...] = (
    *(kind() for kind in specs.JAX),
    hand.LeakyRelu(0.2),
    hand.Elu(0.5),
    hand.Celu(2.0),
    hand.Squareplus(1.0),
)

Truth = Callable[[Any, Any, Any], Any]


class Cell(NamedTuple):
    """Pooled errors of g' over one decade of |z|."""

    activation: Activation
    dtype: str
    decade: int
    ours: float
    autodiff: float
    rounding: float
    """The error of the truth rounded to the dtype."""
    earlier: float = 0.0
    """The error by JAX's earlier rule for expm1, where g' has it and |z| < 1; else 0."""

    @property
    def ratio(self) -> float:
        """Our error over the largest of the others."""
        allowed = max(self.autodiff, self.rounding, self.earlier)
        return 0.0 if self.ours == 0 else self.ours / allowed if allowed > 0 else np.inf

    @property
    def holds(self) -> bool:
        """Whether ours is no larger than one of the others."""
        return self.ours <= max(self.autodiff, self.rounding, self.earlier)


def _gelu(layer: Any, z: Any, e: Any) -> Any:
    return mpmath.ncdf(z) + z * mpmath.npdf(z)


def _gelu_tanh(layer: Any, z: Any, e: Any) -> Any:
    rate, cubic = mp.sqrt(2 / mp.pi), mp.mpf(0.044715)
    odds = mp.exp(2 * rate * (z + cubic * z**3))
    return odds / (1 + odds) * (1 + 2 * z * rate * (1 + 3 * cubic * z * z) / (1 + odds))


def _mish(layer: Any, z: Any, e: Any) -> Any:
    four = 4 * (z + 1) + 4 * e**2 + e**3 + e * (4 * z + 6)  # Misra's ω
    return e * four / (2 * e + e**2 + 2) ** 2


EARLIER: dict[type[Activation], Callable[[Any, jax.Array], jax.Array]] = {
    hand.Elu: lambda layer, z: layer.alpha * (jnp.expm1(z) + 1),
    hand.Celu: lambda layer, z: jnp.expm1(z / layer.alpha) + 1,
    hand.Selu: lambda layer, z: layer.SCALE * (layer.ALPHA * (jnp.expm1(z) + 1)),
}
"""g'(z) for z ≤ 0 as jax.grad of the jax.nn function gave it when expm1' was expm1 + 1."""


def _squareplus(layer: Any, z: Any, e: Any) -> Any:
    root = mp.sqrt(z * z + layer.b)
    return (1 + z / root) / 2 if z > 0 else layer.b / (2 * root * (root - z))


_LAMBDA = mp.mpf(hand.Selu.SCALE)
_ALPHA = mp.mpf(hand.Selu.ALPHA)

TRUE: dict[type[Activation], Truth] = {
    hand.Identity: lambda layer, z, e: 1,
    hand.Relu: lambda layer, z, e: int(z > 0),
    hand.LeakyRelu: lambda layer, z, e: 1 if z >= 0 else layer.slope,
    hand.Relu6: lambda layer, z, e: int(0 < z < 6),
    hand.SquaredRelu: lambda layer, z, e: 2 * max(z, 0),
    hand.HardTanh: lambda layer, z, e: int(-1 <= z <= 1),
    hand.HardSigmoid: lambda layer, z, e: mp.mpf(int(-3 < z < 3)) / 6,
    hand.HardSilu: lambda layer, z, e: (2 * z + 3) / 6 if -3 < z < 3 else int(z > 0),
    hand.Elu: lambda layer, z, e: 1 if z > 0 else layer.alpha * e,
    hand.Celu: lambda layer, z, e: 1 if z > 0 else mp.exp(z / layer.alpha),
    hand.Selu: lambda layer, z, e: _LAMBDA if z > 0 else _LAMBDA * _ALPHA * e,
    hand.Sigmoid: lambda layer, z, e: e / (1 + e) ** 2,
    hand.LogSigmoid: lambda layer, z, e: 1 / (1 + e),
    hand.Tanh: lambda layer, z, e: (2 * e / (1 + e * e)) ** 2,
    hand.Softsign: lambda layer, z, e: 1 / (1 + abs(z)) ** 2,
    hand.Softplus: lambda layer, z, e: e / (1 + e),
    hand.Squareplus: _squareplus,
    hand.Gelu: _gelu,
    hand.GeluTanh: _gelu_tanh,
    hand.Silu: lambda layer, z, e: e / (1 + e) * (1 + z / (1 + e)),
    hand.Mish: _mish,
}
"""g'(z) from the definition, with e = eᶻ, on mpmath numbers; at kinks what the table states."""

ALGEBRAIC = (hand.SquaredRelu, hand.Softsign, hand.Squareplus)
"""Those that never are their limit."""


def true_derivative(layer: Activation, z: Any, e: Any) -> Any:
    """g'(z) in as many digits as mpmath is set to; e is eᶻ, for |z| cut at 2000."""
    if not isinstance(layer, ALGEBRAIC):
        z = max(min(z, FLAT), -FLAT)
    return mp.mpf(TRUE[type(layer)](layer, z, e))


def points(seed: int, dtype: str, decade: int, count: int = POINTS) -> np.ndarray:
    """Random numbers of the dtype, log-uniform in a decade, first positive, then negative."""
    rng = np.random.default_rng([seed, decade + 1000])
    top = min(10.0 ** (decade + 1), float(jnp.finfo(dtype).max) / 2)
    size = np.exp(rng.uniform(np.log(10.0) * decade, np.log(top), count))
    return np.concatenate([size, -size]).astype(jnp.dtype(dtype))


def decades(dtype: str) -> list[int]:
    """The decades that lie in the dtype's range."""
    return [decade for decade in DECADES if 10.0**decade < float(jnp.finfo(dtype).max) / 2]


def delivered(layer: Activation, z: jax.Array) -> jax.Array:
    """g'(z) as a network gets it: forward, then backward of ones."""
    _, residuals = layer.forward((), z)
    return layer.backward((), residuals, jnp.ones_like(z))[1]


def by_autodiff(layer: Activation, z: jax.Array) -> jax.Array:
    """g'(z) as jax.grad of the jax.nn function gives it."""
    return jax.vmap(jax.grad(lambda each: specs.reference(layer, each)))(z)


def by_earlier_rule(layer: Activation, z: jax.Array) -> jax.Array:
    """g'(z) as jax.grad gave it with the rule that JAX had for expm1."""
    above = layer.SCALE if isinstance(layer, hand.Selu) else 1
    return jnp.where(z > 0, above, EARLIER[type(layer)](layer, jnp.minimum(z, 0)))


def table(
    seed: int = 0, count: int = POINTS, advance: Callable[..., None] = lambda note: None
) -> list[Cell]:
    """Every cell: activations, dtypes, decades.

    Args:
        seed: of the points.
        count: points in each decade, of each sign.
        advance: called for each dtype and decade, with a note.
    """
    cells = []
    for dtype in DTYPES:
        drawn = [points(seed, dtype, decade, count) for decade in decades(dtype)]
        ours = _compiled(delivered, JUDGED, np.stack(drawn))
        autodiff = _compiled(by_autodiff, JUDGED, np.stack(drawn))
        exponential = [layer for layer in JUDGED if type(layer) in EARLIER]
        earlier = dict(
            zip(exponential, _compiled(by_earlier_rule, exponential, np.stack(drawn)), strict=True)
        )
        for row, (decade, z) in enumerate(zip(decades(dtype), drawn, strict=True)):
            for number, (layer, exact) in enumerate(zip(JUDGED, _truths(JUDGED, z), strict=True)):
                mine, other = pooled(ours[number][row], exact), pooled(autodiff[number][row], exact)
                rounding = pooled(exact[0].astype(z.dtype), exact)
                before = (
                    pooled(earlier[layer][row], exact) if layer in earlier and decade < 0 else 0.0
                )
                cells.append(Cell(layer, dtype, decade, mine, other, rounding, before))
            advance(f"{dtype} 1e{decade}")
    return cells


def curvatures(seed: int = 0, count: int = 10) -> list[Cell]:
    """The same of g'' in float64 beside jax.grad of jax.grad: reported, judged by nobody."""
    smooth = [layer for layer in JUDGED if not isinstance(layer, hand.Gated)]
    chosen = [decade for decade in decades("float64") if decade < 5]
    drawn = [points(seed, "float64", decade, count) for decade in chosen]
    ours = _compiled(lambda layer, z: layer.curvature(z), smooth, np.stack(drawn))
    autodiff = _compiled(
        lambda layer, z: jax.vmap(jax.grad(jax.grad(lambda v: specs.reference(layer, v))))(z),
        smooth,
        np.stack(drawn),
    )
    cells = []
    with mp.workdps(DIGITS):
        for row, (decade, z) in enumerate(zip(chosen, drawn, strict=True)):
            for number, layer in enumerate(smooth):
                true = [
                    mpmath.diff(
                        lambda v, g=layer: true_derivative(g, v, _exp(v)), mp.mpf(float(each))
                    )
                    for each in z
                ]
                exact = _in_two(true)
                mine, other = pooled(ours[number][row], exact), pooled(autodiff[number][row], exact)
                rounding = pooled(exact[0], exact)
                cells.append(Cell(layer, "float64", decade, mine, other, rounding))
    return cells


def pooled(values: np.ndarray, exact: tuple[np.ndarray, np.ndarray]) -> float:
    """The norm of values - exact, infinite where a value is NaN."""
    apart = (np.asarray(values, np.float64) - exact[0]) - exact[1]
    largest = float(np.max(np.abs(apart)))
    if not 0 < largest < np.inf:
        return 0.0 if largest == 0 else np.inf
    return largest * float(np.linalg.norm(apart / largest))  # squares of 1e-200 would be 0


def run(report: Report, *, seed: int = 0) -> None:
    """Judge every cell."""
    level = report.level("accuracy", "error of each g' over jax.grad's, by decade of |z|", "1")
    total = sum(len(decades(dtype)) for dtype in DTYPES)
    with report.working("accuracy", total) as advance:
        cells = table(seed, advance=advance)
    for cell in cells:
        level.judged(
            cell.holds,
            cell.ratio,
            f"verify.accuracy.table({seed}): {cell.activation}' in {cell.dtype}, |z| from "
            f"1e{cell.decade}: error {cell.ours:.3g}, autodiff's {cell.autodiff:.3g}, rounding's "
            f"{cell.rounding:.3g}",
            family=type(cell.activation).__name__,
        )
    for dtype in DTYPES:
        chosen = [cell for cell in cells if cell.dtype == dtype]
        better = sum(cell.ours < cell.autodiff for cell in chosen)
        level.note(f"{dtype}: error below autodiff's in {better} of {len(chosen)} decades")
    seconds = curvatures(seed)
    better = sum(cell.ours <= max(cell.autodiff, cell.rounding) for cell in seconds)
    level.note(f"g'' in float64: no larger than autodiff's in {better} of {len(seconds)} decades")


def _compiled(function: Callable[..., jax.Array], layers: Any, z: np.ndarray) -> list[np.ndarray]:
    """function(layer, z) of all layers by one program, each with the shape of z."""
    with jax.enable_x64(z.dtype == np.float64):
        program = jax.jit(lambda flat: [function(layer, flat) for layer in layers])
        return [np.asarray(each).reshape(z.shape) for each in program(jnp.asarray(z.ravel()))]


def _truths(layers: Any, z: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """g'(z) of all layers, each as the nearest float64 and the rest."""
    with mp.workdps(DIGITS):
        numbers = [mp.mpf(float(each)) for each in z]
        flat = all(abs(each) > FLAT for each in numbers)
        powers = [_exp(each) for each in numbers]
        found = []
        for layer in layers:
            if flat and not isinstance(layer, ALGEBRAIC):  # two values, one for each sign
                limits = {s: true_derivative(layer, s * FLAT, _exp(s * FLAT)) for s in (1, -1)}
                found.append(_in_two([limits[1 if each > 0 else -1] for each in numbers]))
            else:
                pairs = zip(numbers, powers, strict=True)
                found.append(_in_two([true_derivative(layer, z, e) for z, e in pairs]))
        return found


def _exp(z: Any) -> Any:
    """eᶻ, for |z| cut at 2000."""
    return mp.exp(max(min(z, FLAT), -FLAT))


def _in_two(numbers: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    nearest = [float(each) for each in numbers]
    rest = [float(each - near) for each, near in zip(numbers, nearest, strict=True)]
    return np.array(nearest), np.array(rest)
