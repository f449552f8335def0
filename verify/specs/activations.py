"""Spec of the table of activations: what jax.nn says they are, textbook loops, and the edges.

Piecewise polynomials come in two kinds. All of them are exact in fractions (`is_exact`). On the
lattice of floats only those are whose coefficients floats hold (`on_lattice`): hard_sigmoid and
hard_silu divide by 6, and leaky_relu's slope may have many bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from mpmath import mp

from manual_bp import activations as table
from manual_bp.activation import Activation
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap

JAX: dict[type[Activation], Callable[..., Any]] = {
    table.Identity: lambda layer, z: z,
    table.Relu: lambda layer, z: jax.nn.relu(z),
    table.LeakyRelu: lambda layer, z: jax.nn.leaky_relu(z, layer.slope),
    table.Relu6: lambda layer, z: jax.nn.relu6(z),
    table.SquaredRelu: lambda layer, z: jnp.square(jax.nn.relu(z)),  # jax.nn has none
    table.Elu: lambda layer, z: jax.nn.elu(z, layer.alpha),
    table.Celu: lambda layer, z: jax.nn.celu(z, layer.alpha),
    table.Selu: lambda layer, z: jax.nn.selu(z),
    table.Sigmoid: lambda layer, z: jax.nn.sigmoid(z),
    table.LogSigmoid: lambda layer, z: jax.nn.log_sigmoid(z),
    table.HardSigmoid: lambda layer, z: jax.nn.hard_sigmoid(z),
    table.Tanh: lambda layer, z: jax.nn.tanh(z),
    table.HardTanh: lambda layer, z: jax.nn.hard_tanh(z),
    table.Softsign: lambda layer, z: jax.nn.soft_sign(z),
    table.Softplus: lambda layer, z: jax.nn.softplus(z),
    table.Squareplus: lambda layer, z: jax.nn.squareplus(z, layer.b),
    table.Gelu: lambda layer, z: jax.nn.gelu(z, approximate=False),
    table.GeluTanh: lambda layer, z: jax.nn.gelu(z, approximate=True),
    table.Silu: lambda layer, z: jax.nn.silu(z),
    table.HardSilu: lambda layer, z: jax.nn.hard_silu(z),
    table.Mish: lambda layer, z: jax.nn.mish(z),
}
"""The same functions from jax.nn. At every kink its derivative is the one stated in the table."""

SCALAR: dict[type[Activation], Callable[..., Any]] = {
    table.Identity: lambda layer, z: z,
    table.Relu: lambda layer, z: max(z, 0),
    table.LeakyRelu: lambda layer, z: z if z > 0 else layer.slope * z,
    table.Relu6: lambda layer, z: min(max(z, 0), 6),
    table.SquaredRelu: lambda layer, z: z * z if z > 0 else mp.mpf(0),
    table.Elu: lambda layer, z: z if z > 0 else layer.alpha * (mp.exp(z) - 1),
    table.Celu: lambda layer, z: z if z > 0 else layer.alpha * (mp.exp(z / layer.alpha) - 1),
    table.Selu: lambda layer, z: LAMBDA * (z if z > 0 else ALPHA * (mp.exp(z) - 1)),
    table.Sigmoid: lambda layer, z: 1 / (1 + mp.exp(-z)),
    table.LogSigmoid: lambda layer, z: mpmath.log(1 / (1 + mp.exp(-z))),
    table.HardSigmoid: lambda layer, z: min(max(z + 3, mp.mpf(0)), 6) / 6,
    table.Tanh: lambda layer, z: mp.tanh(z),
    table.HardTanh: lambda layer, z: min(max(z, -1), 1),
    table.Softsign: lambda layer, z: z / (1 + abs(z)),
    table.Softplus: lambda layer, z: mpmath.log(1 + mp.exp(z)),
    table.Squareplus: lambda layer, z: (z + mp.sqrt(z * z + layer.b)) / 2,
    table.Gelu: lambda layer, z: z / 2 * mpmath.erfc(-z / mp.sqrt(2)),
    table.GeluTanh: lambda layer, z: (
        z / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (z + 0.044715 * z**3)))
    ),
    table.Silu: lambda layer, z: z / (1 + mp.exp(-z)),
    table.HardSilu: lambda layer, z: z * min(max(z + 3, mp.mpf(0)), 6) / 6,
    table.Mish: lambda layer, z: z * mp.tanh(mpmath.log(1 + mp.exp(z))),
}
"""The same functions from their definitions, on one mpmath number."""

LAMBDA, ALPHA = mp.mpf(1.0507009873554804934193349852946), mp.mpf(1.6732632423543772848170429916717)

DYADIC = (
    *(table.Identity, table.Relu, table.Relu6, table.SquaredRelu, table.HardTanh, table.LeakyRelu),
)
"""Piecewise polynomial with coefficients that floats hold, leaky_relu's for some slopes."""

KINKED = (
    *(table.Relu, table.LeakyRelu, table.Relu6, table.HardTanh, table.HardSigmoid),
    *(table.HardSilu, table.Elu, table.Selu, table.Celu, table.SquaredRelu),
)
"""Those whose g' or g'' jumps somewhere, for some settings."""

SETTINGS: dict[type[Activation], tuple[float, ...]] = {
    table.LeakyRelu: (0.01, 0.125, 0.25),
    table.Elu: (1.0, 0.5, 1.25),
    table.Celu: (1.0, 0.5, 2.0),
    table.Squareplus: (4.0, 1.0, 0.25),
}
"""What a family is drawn with."""


def draw_activation(rng: np.random.Generator) -> Activation:
    """Any activation, with random settings where it has some."""
    return draw_kind(rng, list(JAX)[rng.integers(len(JAX))])


def draw_kind(rng: np.random.Generator, kind: type[Activation]) -> Activation:
    """An activation of this kind, with random settings where it has some."""
    make: Any = kind
    return make(float(rng.choice(SETTINGS[kind]))) if kind in SETTINGS else make()


def reference(layer: Activation, z: jax.Array) -> jax.Array:
    """g(z) by jax.nn."""
    return JAX[type(layer)](layer, z)


def is_exact(layer: Activation) -> bool:
    """Whether g is piecewise polynomial, and so exact in fractions."""
    return isinstance(layer, (*DYADIC, table.HardSigmoid, table.HardSilu))


def on_lattice(layer: Activation) -> bool:
    """Whether g and g' are exact on small integers in floats too."""
    if isinstance(layer, table.LeakyRelu):
        return float(layer.slope * 256).is_integer()
    return isinstance(layer, DYADIC)


def naive(layer: Activation, params: Any, z: np.ndarray) -> np.ndarray:
    """g(z), number by number."""
    del params
    return np.array([SCALAR[type(layer)](layer, each) for each in z.ravel()]).reshape(z.shape)


def manual_derivative(layer: Activation) -> Callable[[jax.Array], jax.Array]:
    """g' as the library delivers it: forward, then backward of ones."""

    def derivative(z: jax.Array) -> jax.Array:
        _, residuals = layer.forward((), z)
        return layer.backward((), residuals, jnp.ones_like(z))[1]

    return derivative


def _edge(
    layer: Activation,
    dtype: str,
    point: float,
    stated: float,
    recorded: float,
    function: str = "",
    idiom: Callable[..., Any] | None = None,
) -> Edge:
    """A point of g'; idiom is the form that autodiff gets, jax.nn's unless given."""
    differentiated = idiom or (lambda z: reference(layer, z))
    return Edge(
        function=function or repr(layer),
        point=point,
        dtype=dtype,
        stated=stated,
        manual=manual_derivative(layer),
        autodiff=lambda z: jnp.reshape(
            jax.vmap(jax.grad(differentiated))(jnp.ravel(z)), jnp.shape(z)
        ),
        recorded=recorded,
    )


def _number(layer: type[Activation], name: str, value: Any, error: type[Exception]) -> BadInput:
    """A setting that isn't a number that fits, and what must be said of it."""
    family = repr(layer()).partition("(")[0]
    return BadInput(
        f"{family} with {name}={value!r}",
        lambda: layer(**{name: value}),
        error,
        (f"{family}'s {name} must be a finite number", f"got {value!r}"),
    )


NAN, INF = float("nan"), float("inf")

EDGES: dict[type[Activation], tuple[Edge, ...]] = {
    table.Relu: (
        _edge(table.relu, "float32", 0.0, 0.0, 0.0),
        _edge(
            *(table.relu, "float32", 0.0, 0.0, 0.5, "maximum(z, 0)"),
            idiom=lambda z: jnp.maximum(z, 0),
        ),
    ),
    table.LeakyRelu: (_edge(table.LeakyRelu(0.25), "float32", 0.0, 1.0, 1.0),),
    table.Relu6: (
        _edge(table.relu6, "float32", 0.0, 0.0, 0.0),
        _edge(table.relu6, "float32", 6.0, 0.0, 0.0),
        _edge(
            *(table.relu6, "float32", 6.0, 0.0, 0.5, "minimum(maximum(z, 0), 6)"),
            idiom=lambda z: jnp.minimum(jnp.maximum(z, 0), 6),
        ),
    ),
    table.SquaredRelu: (_edge(table.squared_relu, "float32", 0.0, 0.0, 0.0),),
    table.HardSigmoid: (
        _edge(table.hard_sigmoid, "float32", -3.0, 0.0, 0.0),
        _edge(table.hard_sigmoid, "float32", 3.0, 0.0, 0.0),
    ),
    table.HardTanh: (
        _edge(table.hard_tanh, "float32", -1.0, 1.0, 1.0),
        _edge(table.hard_tanh, "float32", 1.0, 1.0, 1.0),
        _edge(
            *(table.hard_tanh, "float32", 1.0, 1.0, 0.5, "clip(z, -1, 1)"),
            idiom=lambda z: jnp.minimum(jnp.maximum(z, -1), 1),
        ),
    ),
    table.HardSilu: (
        _edge(table.hard_silu, "float32", -3.0, 0.0, 0.0),
        _edge(table.hard_silu, "float32", 3.0, 1.0, 1.0),
    ),
    table.Elu: (
        _edge(table.Elu(0.5), "float32", 0.0, 0.5, 0.5),
        _edge(table.Elu(), "float32", -18.0, 1.523e-8, 0.0),
        _edge(table.Elu(), "float64", -38.0, 3.13913e-17, 0.0),
        _edge(table.Elu(), "float16", -9.0, 1.2341e-4, 0.0),
    ),
    table.Celu: (
        _edge(table.Celu(2.0), "float32", 0.0, 1.0, 1.0),
        _edge(table.Celu(2.0), "float32", -88.0, 7.78113e-20, 0.0),
        _edge(table.Celu(), "float32", -20.0, 2.06115e-9, 0.0),
    ),
    table.Selu: (
        _edge(table.selu, "float32", 0.0, 1.7581, 1.7581),
        _edge(table.selu, "float32", -20.0, 3.62371e-9, 0.0),
        _edge(table.selu, "float16", -10.0, 7.98176e-5, 0.0),
    ),
    table.Sigmoid: (
        _edge(table.sigmoid, "float32", 17.0, 4.13994e-8, 0.0),
        _edge(table.sigmoid, "float32", 80.0, 1.80485e-35, 0.0),
        _edge(table.sigmoid, "float64", 40.0, 4.24835e-18, 0.0),
        _edge(table.sigmoid, "float16", 9.0, 1.23379e-4, 0.0),
    ),
    table.LogSigmoid: (
        _edge(
            *(table.log_sigmoid, "float32", -200.0, 1.0, NAN, "log(sigmoid(z))"),
            idiom=lambda z: jnp.log(jax.nn.sigmoid(z)),
        ),
    ),
    table.Tanh: (
        _edge(table.tanh, "float32", 10.0, 8.24461e-9, 0.0),
        _edge(table.tanh, "float32", -20.0, 1.69934e-17, 0.0),
        _edge(table.tanh, "float64", 20.0, 1.69934e-17, 0.0),
        _edge(table.tanh, "float16", 5.0, 1.81583e-4, 0.0),
        _edge(table.tanh, "bfloat16", 4.0, 1.34095e-3, 0.0),
    ),
    table.Softsign: (
        _edge(table.softsign, "float32", 0.0, 1.0, 1.0),
        _edge(table.softsign, "float32", -1e13, 1e-26, 0.0),
        _edge(table.softsign, "bfloat16", 1000.0, 9.98003e-7, 0.0),
    ),
    table.Softplus: (
        _edge(
            *(table.softplus, "float32", 100.0, 1.0, NAN, "log(1 + exp(z))"),
            idiom=lambda z: jnp.log(1 + jnp.exp(z)),
        ),
    ),
    table.Squareplus: (
        _edge(table.Squareplus(), "float16", -256.0, 1.52581e-5, 0.5),
        _edge(table.Squareplus(), "float16", 256.0, 0.999985, 0.5),
        _edge(table.Squareplus(), "bfloat16", -256.0, 1.52581e-5, 0.0),
        _edge(table.Squareplus(), "float32", 2e19, 1.0, 0.5),
        _edge(table.Squareplus(), "float64", 1e200, 1.0, 0.5),
        _edge(table.Squareplus(1.0), "float32", -4096.0, 1.49012e-8, 0.0),
    ),
    table.GeluTanh: (
        _edge(table.gelu_tanh, "float16", 148.0, 1.0, NAN),
        _edge(table.gelu_tanh, "float32", 1e20, 1.0, NAN),
        _edge(table.gelu_tanh, "float32", -6.0, -7.70997e-10, 0.0),
        _edge(table.gelu_tanh, "float32", -8.0, -4.71478e-20, 0.0),
        _edge(table.gelu_tanh, "float64", -9.0, -2.51574e-27, 0.0),
        _edge(table.gelu_tanh, "float64", 1e200, 1.0, NAN),
    ),
    table.Silu: (_edge(table.silu, "float16", -12.0, -6.75855e-5, 0.0),),
    table.Mish: (
        _edge(
            *(table.mish, "float32", 100.0, 1.0, NAN, "z tanh(log(1 + exp(z)))"),
            idiom=lambda z: z * jnp.tanh(jnp.log(1 + jnp.exp(z))),
        ),
    ),
}
"""Where autodiff is 0, NaN, half or otherwise wrong, and every kink. From mpmath in 30 digits."""

ERRORS: dict[type[Activation], tuple[BadInput, ...]] = {
    table.LeakyRelu: (
        _number(table.LeakyRelu, "slope", NAN, ValueError),
        _number(table.LeakyRelu, "slope", "0.1", TypeError),
    ),
    table.Elu: (
        _number(table.Elu, "alpha", 0, ValueError),
        _number(table.Elu, "alpha", INF, ValueError),
        _number(table.Elu, "alpha", None, TypeError),
    ),
    table.Celu: (
        _number(table.Celu, "alpha", 0.0, ValueError),
        _number(table.Celu, "alpha", -INF, ValueError),
        _number(table.Celu, "alpha", True, TypeError),
    ),
    table.Squareplus: (
        _number(table.Squareplus, "b", 0.0, ValueError),
        _number(table.Squareplus, "b", -1.0, ValueError),
        _number(table.Squareplus, "b", NAN, ValueError),
        _number(table.Squareplus, "b", [4.0], TypeError),
    ),
    table.Tanh: (
        BadInput(
            "an activation of integers",
            lambda: table.tanh.forward((), jnp.zeros((2, 3), jnp.int32)),
            TypeError,
            ("tanh takes floating-point inputs", "int32 (2, 3)", "x.astype"),
        ),
    ),
}


def _spec(kind: type[Activation]) -> LayerSpec:
    def draw(rng: np.random.Generator, shape: Shape) -> Activation:
        del shape
        return draw_kind(rng, kind)

    def by_jax(layer: Activation, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
        del params, tap
        return reference(layer, x)

    return LayerSpec(
        layer=kind,
        samples=((kind(), (4, 3)), (kind(), (1, 1)), (kind(), (2, 3, 5))),
        reference=by_jax,
        naive=naive,
        draw=draw,
        shrink=lambda layer: iter(() if kind is table.Identity else (table.identity,)),
        exact=is_exact,
        smooth=lambda layer: kind not in KINKED,
        edges=EDGES.get(kind, ()),
        errors=ERRORS.get(kind, ()),
    )


SPECS = tuple(_spec(kind) for kind in JAX)
