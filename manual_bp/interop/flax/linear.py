"""Linear, LinearGeneral, Conv and Embed of flax.nnx with hand-derived backward passes.

Dtypes are promoted first, by the module's own promote_dtype, and the casts are JAX's. Then

| module | is |
|---|---|
| Linear | dense(x, kernelᵀ, bias) |
| LinearGeneral over the last axes | the same, of axes made one and cut again |
| Conv | conv(x, kernel, bias), after padding that isn't with zeros |
| Embed | embedding(tokens, table), and attend(x) = x tableᵀ |

Formulas and derivations: manual_bp/layers/dense.py, conv.py and embedding.py.
"""

from __future__ import annotations

import math
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from manual_bp.interop import functions
from manual_bp.interop.settings import as_sizes, served


class Linear(nnx.Linear):
    """flax's Linear; see `manual_bp.interop.flax`.

    Not served: precision, dot_general, preferred_element_type, out_sharding at the call.

    Example:
        >>> from flax import nnx
        >>> import manual_bp.interop.flax as by_hand
        >>> layer = by_hand.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((4, 3))).shape
        (4, 2)
    """

    def __call__(self, inputs: Any, out_sharding: Any = None) -> jax.Array:
        """inputs (..., in_features) -> (..., out_features)."""
        return linear(self, inputs, out_sharding)


class LinearGeneral(nnx.LinearGeneral):
    """flax's LinearGeneral over the last axes; see `manual_bp.interop.flax`.

    Not served: batch_axis, axes that aren't the last ones, and what Linear doesn't serve.
    """

    def __call__(self, inputs: Any, out_sharding: Any = None) -> jax.Array:
        """inputs (..., *in_features) -> (..., *out_features)."""
        return linear_general(self, inputs, out_sharding)


class Conv(nnx.Conv):
    """flax's Conv; see `manual_bp.interop.flax`.

    Not served: input_dilation, precision, conv_general_dilated, preferred_element_type,
    out_sharding at the call.
    """

    def __call__(self, inputs: Any, out_sharding: Any = None) -> jax.Array:
        """inputs (..., *space, in_features) -> (..., *space, out_features)."""
        refuse = served(Conv, "flax.nnx.Conv")
        axes = len(self.kernel_size)
        refuse.check("input_dilation", as_sizes(self.input_dilation, axes), (1,) * axes)
        refuse.check("precision", self.precision, None)
        refuse.check(
            "conv_general_dilated", self.conv_general_dilated, jax.lax.conv_general_dilated
        )
        refuse.check("preferred_element_type", self.preferred_element_type, None)
        refuse.check("out_sharding", out_sharding, None)
        kernel = self.kernel[...] if self.mask is None else self.kernel[...] * self.mask
        x, kernel, bias = self.promote_dtype(
            (inputs, kernel, array_of(self.bias)), dtype=self.dtype
        )
        examples = x.shape[: -axes - 1]
        x = x.reshape(math.prod(examples), *x.shape[-axes - 1 :])
        x, padding = self._padded(x)
        out = functions.conv(
            x,
            kernel,
            bias,
            stride=as_sizes(self.strides, axes),
            padding=padding,
            dilation=as_sizes(self.kernel_dilation, axes),
            groups=self.feature_group_count,
        )
        return out.reshape(*examples, *out.shape[1:])

    def _padded(self, x: jax.Array) -> tuple[jax.Array, Any]:
        """x, and the zeros that are put around it: what isn't zero is put there already."""
        axes, padding = len(self.kernel_size), self.padding
        spans = [
            d * (k - 1)
            for d, k in zip(as_sizes(self.kernel_dilation, axes), self.kernel_size, strict=True)
        ]
        if padding in ("CIRCULAR", "REFLECT"):
            around = [(span // 2, span - span // 2) for span in spans]
            mode = "wrap" if padding == "CIRCULAR" else "reflect"
            return jnp.pad(x, [(0, 0), *around, (0, 0)], mode=mode), "VALID"
        if padding == "CAUSAL":
            return x, ((spans[0], 0),)  # of sequences alone: flax says so, and so does conv
        if isinstance(padding, str):
            return x, padding
        if isinstance(padding, int):
            return x, ((padding, padding),) * axes
        return x, tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding)


class Embed(nnx.Embed):
    """flax's Embed; see `manual_bp.interop.flax`.

    A token that doesn't exist raises where its value is at hand; inside a program it makes its
    vector NaN, as in flax, and the gradient of the table too. -1 is the last token, as in flax.

    Not served: out_sharding at the call.

    Example:
        >>> from flax import nnx
        >>> import manual_bp.interop.flax as by_hand
        >>> table = by_hand.Embed(5, 3, rngs=nnx.Rngs(0))
        >>> table(jnp.array([[1, 4]])).shape
        (1, 2, 3)
    """

    def __call__(self, inputs: Any, out_sharding: Any = None) -> jax.Array:
        """Tokens (...) -> (..., features)."""
        served(Embed, "flax.nnx.Embed").check("out_sharding", out_sharding, None)
        (table,) = self.promote_dtype((self.embedding[...],), dtype=self.dtype, inexact=False)
        tokens = jnp.asarray(inputs)
        if self.num_embeddings == 1:
            tokens = jnp.zeros_like(tokens)  # whatever the token
        return functions.embedding(wrapped(tokens, self.num_embeddings), table)

    def attend(self, query: Any, out_sharding: Any = None) -> jax.Array:
        """The scores of all tokens, query tableᵀ: (..., features) -> (..., num_embeddings)."""
        served(Embed, "flax.nnx.Embed").check("out_sharding", out_sharding, None)
        query, table = self.promote_dtype((query, self.embedding[...]), dtype=self.dtype)
        return functions.dense(query, table)


def linear(module: nnx.Linear, inputs: Any, out_sharding: Any = None) -> jax.Array:
    """What Linear computes, of flax's module or ours."""
    refuse = served(Linear, "flax.nnx.Linear")
    refuse.check("precision", module.precision, None)
    refuse.check("dot_general", module.dot_general, jax.lax.dot_general)
    refuse.check("preferred_element_type", module.preferred_element_type, None)
    refuse.check("out_sharding", out_sharding, None)
    x, kernel, bias = module.promote_dtype(
        (inputs, module.kernel[...], array_of(module.bias)), dtype=module.dtype
    )
    return functions.dense(x, kernel.T, bias)


def linear_general(module: nnx.LinearGeneral, inputs: Any, out_sharding: Any = None) -> jax.Array:
    """What LinearGeneral computes, of flax's module or ours."""
    refuse = served(LinearGeneral, "flax.nnx.LinearGeneral")
    n = len(module.in_features)
    axes = tuple(axis if axis < 0 else axis - inputs.ndim for axis in module.axis)
    refuse.check("axis", tuple(sorted(axes)), tuple(range(-n, 0)))
    refuse.check("batch_axis", bool(module.batch_axis), False)
    refuse.check("precision", module.precision, None)
    refuse.check("dot_general", module.dot_general, None, jax.lax.dot_general)
    refuse.check("dot_general_cls", module.dot_general_cls, None)
    refuse.check("preferred_element_type", module.preferred_element_type, None)
    refuse.check("out_sharding", out_sharding, None)
    x, kernel, bias = module.promote_dtype(
        (inputs, module.kernel[...], array_of(module.bias)), dtype=module.dtype
    )
    W = kernel.reshape(math.prod(module.in_features), math.prod(module.out_features)).T
    x = x.reshape(*x.shape[:-n], W.shape[1])
    out = functions.dense(x, W, None if bias is None else bias.reshape(-1))
    return out.reshape(*out.shape[:-1], *module.out_features)


def array_of(variable: Any) -> Any:
    """The array of a Param, None for none."""
    return None if variable is None else variable[...]


def wrapped(tokens: jax.Array, vocabulary: int) -> jax.Array:
    """Tokens with -1 for the last one and so on, as indices of arrays are."""
    return jnp.where(tokens < 0, tokens + vocabulary, tokens)
