"""Layers and losses as plain functions that jax.grad differentiates by their hand-derived rules.

    f = as_function(layer);   f(params, x) = layer.forward(params, x)[0]

with the vector-Jacobian product replaced by the layer's own backward:

    forward:   out, residuals = layer.forward(params, x)
    backward:  dparams, dx    = layer.backward(params, residuals, dout)

What JAX does with it.  `jax.custom_vjp` holds the pair. Reverse mode calls it, under jit, vmap,
scan, `jax.checkpoint` and meshes alike. A second derivative differentiates both programs as any
other: forward and backward are formulas of JAX's own operations, and residuals are functions of
params and x, so the gradient of the gradient is right where those formulas can be differentiated.
Forward mode over f itself (jvp, linearize followed by a tangent, jacfwd) is JAX's TypeError, since
a layer has a rule for errors, not for tangents; over the gradient of f it works, so jax.hessian
does. Activations have both rules: see `elementwise`.

On several devices a cotangent is brought to its primal's type: see
`manual_bp.interop.attaching`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.gradients import close_params, open_params
from manual_bp.inputs import check_arrays, check_taken_arrays, check_tokens
from manual_bp.interop.attaching import attached
from manual_bp.layer import Layer, Loss, Tree, accumulation_dtype, check_taken


def as_function(layer: Layer, *, observes: bool = False) -> Callable[..., Any]:
    """f(params, x, **taken) -> out, differentiated by the layer's hand-derived backward.

        f(params, x) = layer.forward(params, x)[0],   its VJP at dout = layer.backward(..., dout)

    Args:
        layer: any layer, combinator or network.
        observes: whether f returns (out, observed) instead: statistics of the batch, final states.
            They count as constants: no gradient flows through them, as a running mean or truncated
            backpropagation through time want it.

    Returns:
        f(params, x, **taken): params as `layer.init` makes them (for a chain of dense layers in
        any of the notes' structures), x (m, ...), and what the layer takes by name: of that,
        memories and states have a gradient, and it is an error to ask for one of statistics. Each
        call with an equal layer returns the same f, so that jit compiles it once.

    Raises:
        TypeError: for what is no layer; f raises what the layer does.

    Source: JAX's documentation, Custom derivative rules for Python code.

    Example:
        >>> network, x = mbp.mlp([3, 5, 2], hidden=mbp.tanh), jnp.ones((4, 3))
        >>> f, params = as_function(network), network.init(jax.random.key(0), x)
        >>> jax.grad(lambda params: f(params, x).sum())(params)[0].W.shape
        (5, 3)
    """
    if not isinstance(layer, Layer):
        advice = " For a loss use as_loss(loss)." if isinstance(layer, Loss) else ""
        raise TypeError(
            f"as_function takes a layer or network, got {layer!r}; for example "
            f"mbp.Dense(10).{advice}"
        )
    return _as_function(layer, observes)


@functools.cache
def _as_function(layer: Layer, observes: bool) -> Callable[..., Any]:
    def forward(
        params: Tree, x: Any, taken: dict[str, Any], fixed: dict[str, Any]
    ) -> tuple[Any, Tree]:
        _, tree, _ = open_params(params, layer, Loss())
        out, residuals = layer.forward(tree, x, **taken, **fixed)
        return (out, layer.observe(residuals)) if observes else out, (params, residuals, taken)

    def backward(kept: Tree, dout: Any) -> tuple[Tree, Any, dict[str, Any], None]:
        params, residuals, taken = kept
        _, tree, _ = open_params(params, layer, Loss())
        dout = dout[0] if observes else dout
        dparams, dx, dtaken = layer.backward_taken(tree, residuals, dout)
        # what isn't there, such as a state of None, has no gradient either
        dtaken = {
            name: dtaken.get(name) if jax.tree.leaves(taken[name]) else None for name in taken
        }
        return close_params(dparams, (), params, layer, Loss()), dx, dtaken, None

    fixed_names = [name for name in layer.takes if name not in layer.differentiates]
    what = {3: f"{layer!r}: {', '.join(fixed_names)}"} if fixed_names else {}
    compute = attached(forward, backward, constants=what)

    def function(params: Tree, x: Any, **taken: Any) -> Any:
        check_arrays(params, x=x)
        check_taken(layer, taken)
        check_taken_arrays(taken)
        check_tokens(layer, x, None)
        fixed = {name: taken.pop(name) for name in fixed_names}
        return compute(params, jnp.asarray(x), taken, fixed)

    function.__name__ = function.__qualname__ = f"{type(layer).__name__.lower()}_function"
    function.__doc__ = f"{layer!r} of (params, x, **taken), with its hand-derived backward."
    return function


def as_loss(loss: Loss) -> Callable[..., jax.Array]:
    """f(prediction, target) -> the loss of each prediction, differentiated by the loss's own error.

        f(Z, Y)_i = value(Z_i, Y_i),   its VJP at w:  dZ_i = w_i · error(Z_i, Y_i)

    Of softmax cross-entropy that error is the notes' A - Y.

    Args:
        loss: any loss. One with parameters of its own takes them last: f(prediction, target,
            params).

    Returns:
        f(prediction, target) -> (m,) or (m, T), one number for each prediction, not averaged.
        Targets have no gradient: it is an error to ask for one. Of a loss with parameters, a
        weight of exactly 0 leaves its prediction out, of the second derivative too.

    Raises:
        TypeError: for what is no loss; f raises what the loss does.

    Source: JAX's documentation, Custom derivative rules for Python code.

    Example:
        >>> f = as_loss(mbp.SoftmaxCrossEntropy())
        >>> print(jax.grad(lambda z: f(z, jnp.array([1])).sum())(jnp.zeros((1, 2))))
        [[ 0.5 -0.5]]
    """
    if not isinstance(loss, Loss):
        advice = " Call it." if isinstance(loss, type) else ""
        raise TypeError(f"as_loss takes a Loss such as mbp.SquaredError(), got {loss!r}.{advice}")
    return _as_loss(loss)


@functools.cache
def _as_loss(loss: Loss) -> Callable[..., jax.Array]:
    def values(prediction: jax.Array, target: Any, params: Tree) -> jax.Array:
        loss.check(prediction, target)
        if not loss.parametric:
            return loss.value(prediction, target)
        idle = jnp.zeros(prediction.shape[:-1], accumulation_dtype(prediction))
        return loss.sweep(params, prediction, target, idle)[0]

    def forward(prediction: jax.Array, target: Any, params: Tree) -> tuple[jax.Array, Tree]:
        return values(prediction, target, params), (prediction, target, params)

    def backward(kept: Tree, dvalues: jax.Array) -> tuple[jax.Array, None, Tree]:
        prediction, target, params = kept
        if loss.parametric:
            _, dparams, dprediction = loss.sweep(params, prediction, target, dvalues)
            return dprediction, None, dparams
        error = loss.error(prediction, target)
        w = dvalues.reshape(dvalues.shape + (1,) * (error.ndim - dvalues.ndim))
        # An error that isn't finite counts for nothing where its weight is 0. Others are multiplied
        # there too: what w changes at 0 is the error, for who asks for that derivative.
        idle = (w == 0) & ~jnp.isfinite(error)
        return jnp.where(idle, 0, w * error).astype(prediction.dtype), None, ()

    compute = attached(forward, backward, constants={1: f"{loss!r}: the target"})

    def function(prediction: Any, target: Any, params: Tree = ()) -> jax.Array:
        check_arrays(params, prediction=prediction, target=target)
        return compute(jnp.asarray(prediction), jnp.asarray(target), params)

    function.__name__ = function.__qualname__ = f"{type(loss).__name__}_function"
    function.__doc__ = f"{loss!r} of each prediction, with its hand-derived error."
    return function
