"""Linear, MLP, Conv1d to Conv3d and Embedding of equinox with hand-derived backward passes.

| module | is, of one example |
|---|---|
| Linear | dense(x, weight, bias) |
| MLP | dense(x, weight, bias, activation) layer by layer: the activation keeps a mask, or g' |
| Conv1d, Conv2d, Conv3d | conv, of (C, *space) as (*space, C) and of OIHW as HWIO |
| Embedding | embedding(token, weight) |

Under `jax.vmap` all examples go through a layer at once: `manual_bp.interop.one_example`.
Formulas and derivations: manual_bp/layers/dense.py, conv.py and embedding.py.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from manual_bp.activation import Activation
from manual_bp.activations import identity
from manual_bp.interop import functions
from manual_bp.interop.equinox.names import ACTIVATIONS, NO_ACTIVATION
from manual_bp.interop.one_example import of_one_example
from manual_bp.interop.settings import served
from manual_bp.layer import Tree


class Linear(eqx.nn.Linear):
    """equinox's Linear; see `manual_bp.interop.equinox`.

    Example:
        >>> import manual_bp.interop.equinox as by_hand
        >>> layer = by_hand.Linear(3, 2, key=jax.random.key(0))
        >>> jax.vmap(layer)(jnp.ones((4, 3))).shape
        (4, 2)
    """

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """x (in_features,), or () if "scalar" -> (out_features,), or () if "scalar"."""
        return linear(self, x)


class MLP(eqx.nn.MLP):
    """equinox's MLP; see `manual_bp.interop.equinox`.

    An activation of jax.nn is replaced by ours; any other function is called as it is, on each
    number as equinox does.

    Not served: scan, activations with arrays of their own.

    Example:
        >>> import manual_bp.interop.equinox as by_hand
        >>> model = by_hand.MLP(3, 2, 8, 2, key=jax.random.key(0))
        >>> jax.vmap(model)(jnp.ones((4, 3))).shape
        (4, 2)
    """

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """x (in_size,), or () if "scalar" -> (out_size,), or () if "scalar"."""
        refuse = served(MLP, "equinox.nn.MLP")
        refuse.check("scan", self.scan, False)
        for name, given in (
            ("activation", self.activation),
            ("final_activation", self.final_activation),
        ):
            has_arrays = any(map(eqx.is_array, jax.tree.leaves(given)))
            refuse.check(f"{name} with arrays", has_arrays, False)
        *hidden, last = self.layers
        for layer in hidden:
            x = _activated(layer, x, self.activation)
        return _activated(last, x, self.final_activation)


class Embedding(eqx.nn.Embedding):
    """equinox's Embedding; see `manual_bp.interop.equinox`.

    A token that doesn't exist, which equinox takes for the nearest one that does, raises where its
    value is at hand, and makes its vector and the gradient NaN inside a program. -1 is the last.

    Example:
        >>> import manual_bp.interop.equinox as by_hand
        >>> table = by_hand.Embedding(5, 3, key=jax.random.key(0))
        >>> jax.vmap(table)(jnp.array([1, 4])).shape
        (2, 3)
    """

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """A token () -> (embedding_size,)."""
        if jnp.shape(x) != ():
            raise ValueError(
                f"{type(self).__name__} takes one token, of shape (), got {jnp.shape(x)}; for "
                "several write jax.vmap(embedding)(tokens)."
            )
        token = jnp.asarray(x)
        token = jnp.where(token < 0, token + self.num_embeddings, token)
        return _embedding(self.weight, token)


def _conv_call(module: eqx.nn.Conv, x: Any) -> jax.Array:
    """What Conv computes of x (C, *space)."""
    refuse = served(type(module), "equinox.nn.Conv")
    refuse.check("padding_mode", module.padding_mode, "ZEROS")
    if isinstance(module.padding, str):
        refuse.check("padding", module.padding, "SAME", "VALID")
        padding: Any = module.padding
    else:
        padding = tuple((low, high) for low, high in module.padding)
    if x.ndim != module.num_spatial_dims + 1:
        raise ValueError(
            f"{type(module).__name__} takes one example, (channels, *space) of "
            f"{module.num_spatial_dims + 1} axes, got {x.shape}; for a batch write "
            "jax.vmap(conv)(x)."
        )

    def of_many(weights: Tree, X: jax.Array) -> jax.Array:
        weight, bias = weights
        out = functions.conv(
            jnp.moveaxis(X, 1, -1),
            jnp.moveaxis(weight, (0, 1), (-1, -2)),
            None if bias is None else bias.reshape(-1),
            stride=module.stride,
            padding=padding,
            dilation=module.dilation,
            groups=module.groups,
        )
        return jnp.moveaxis(out, -1, 1)

    return of_one_example(of_many)((module.weight, module.bias), x)


class Conv(eqx.nn.Conv):
    """equinox's Conv; see `manual_bp.interop.equinox`.

    Not served: padding_mode but "ZEROS", padding "SAME_LOWER".
    """

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """x (in_channels, *space) -> (out_channels, *space)."""
        return _conv_call(self, x)


class Conv1d(eqx.nn.Conv1d):
    """equinox's Conv1d; see `Conv`."""

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """x (in_channels, T) -> (out_channels, T')."""
        return _conv_call(self, x)


class Conv2d(eqx.nn.Conv2d):
    """equinox's Conv2d; see `Conv`.

    Example:
        >>> import manual_bp.interop.equinox as by_hand
        >>> layer = by_hand.Conv2d(1, 4, 3, key=jax.random.key(0))
        >>> jax.vmap(layer)(jnp.ones((2, 1, 8, 8))).shape
        (2, 4, 6, 6)
    """

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """x (in_channels, H, W) -> (out_channels, H', W')."""
        return _conv_call(self, x)


class Conv3d(eqx.nn.Conv3d):
    """equinox's Conv3d; see `Conv`."""

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """x (in_channels, D, H, W) -> (out_channels, D', H', W')."""
        return _conv_call(self, x)


def linear(module: eqx.nn.Linear, x: Any, activation: Activation = identity) -> jax.Array:
    """g(weight x + bias), of equinox's module or ours."""
    x = jnp.asarray(x)
    expected = () if module.in_features == "scalar" else (module.in_features,)
    if x.shape != expected:
        raise ValueError(
            f"{type(module).__name__} takes one example, of shape {expected}, got {x.shape}; for a "
            "batch write jax.vmap(linear)(x)."
        )

    def of_many(weights: Tree, X: jax.Array) -> jax.Array:
        return functions.dense(X, *weights, activation=activation)

    out = of_one_example(of_many)((module.weight, module.bias), x.reshape(-1))
    return out.reshape(()) if module.out_features == "scalar" else out


def _activated(layer: Any, x: Any, activation: Any) -> jax.Array:
    """A layer of an MLP, linear unless somebody put in one of their own, and its activation."""
    ours = type(layer) in (eqx.nn.Linear, Linear)
    known = identity if activation is NO_ACTIVATION else ACTIVATIONS.get(activation)
    if ours and known is not None:
        return linear(layer, x, known)
    z = linear(layer, x) if ours else layer(x)
    return activation(z) if z.ndim == 0 else jax.vmap(activation)(z)


_embedding = of_one_example(lambda weight, tokens: functions.embedding(tokens, weight))
