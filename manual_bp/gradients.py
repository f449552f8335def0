"""manual_grads and its sisters: a network, a loss and a batch in, gradients out.

    J = Σ_i w_i · loss_i,    w_i = 1/m unless weights are given

One sweep: forward through the network, the loss's error for its prediction, weighted, and the walk
back. This is the engine's only 1/m. It is applied once, to the first error; every dv below is then
∂J/∂v, without a pass over the parameters to divide them.

The work is compiled with `jax.jit`, network and loss static. Shapes and dtypes are checked when it
is traced, which costs nothing when it runs.

On several devices.  Under jit nothing changes: however batch and parameters are divided on a mesh,
J and its gradient are those of the whole batch. Inside `jax.shard_map` a sweep sees the examples of
one device, its J and gradient are of those alone, and the caller sums over devices:

    no weights            each J is a mean of as many examples: pmean
    weights given         each J is a part of Σ_i w_i loss_i: psum
    some don't count      (an ignored class, with no weights) each J is a mean of other numbers of
                          predictions, and neither is right; one over the number that count on all
                          devices is a weight, w = counted / psum(Σ counted), so psum again
    clipped_grads         a sum over examples: psum, and noise after it, once, not on each device
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.combinators.sequential import Sequential
from manual_bp.inputs import (
    check_arrays,
    check_batch,
    check_classes,
    check_taken_arrays,
    check_tokens,
    check_weights,
)
from manual_bp.layer import (
    Layer,
    Loss,
    Tree,
    Visit,
    accumulation_dtype,
    check_taken,
    gathered,
    taken_visit,
)
from manual_bp.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from manual_bp.notes_params import as_network, is_dense_chain, read, restore
from manual_bp.sharding import sharded_like, tree_sharded_like


class Pass(NamedTuple):
    """Everything of one sweep."""

    loss: jax.Array
    """J, a scalar."""
    prediction: jax.Array
    """What the network makes of x: Z[L], its logits."""
    grads: Tree
    """∂J/∂params, in the structure of params."""
    observed: Tree
    """What layers gathered of this batch, nested like the network: statistics, final states."""
    dx: jax.Array
    """∂J/∂x: what a network below this one goes on with."""
    dtaken: dict[str, Tree]
    """The gradients of what the network takes by name, where it has one: "memory", "state"."""


def manual_pass(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> Pass:
    """Loss, prediction, gradient and statistics of one sweep by hand-derived backpropagation.

        dZ[L] = w (A[L] - Y),   dZ[l] = W[l+1]ᵀ dZ[l+1] ⊙ g'(Z[l]),
        dW[l] = dZ[l] A[l-1]ᵀ,  db[l] = Σ over examples of dZ[l]

    for dense networks, and every other layer's own backward where there are others.

    Args:
        params: what `network.init` made. Without a network, (W, b) pairs of the notes' MLP with
            relu hidden layers: a tuple or list of pairs, or one bare pair; a pair is a tuple, a
            list, or a dict or NamedTuple with fields W and b; W is (n_out, n_in), b (n_out,).
        x: (m, ...), the examples, first axis first.
        y: targets, as the loss takes them: for classes (m,) integers or (m, C).
        network: the network whose params these are.
        loss: SoftmaxCrossEntropy() unless given.
        weights: one for each prediction, (m,) or (m, T), in the unit of the loss: J is their
            weighted sum. By default one over the number of predictions that count: J is the mean.
            Ones give the notes' dZ, in which row i is the error of example i alone. The loss
            of a prediction of weight 0 contributes exactly 0, also where its target is invalid or
            its input isn't finite or no token (inputs of weight 0 that can't be read are read as
            0). A layer that mixes examples still sees that input: BatchNorm(masked=True) takes
            mask=weights != 0 too.
        **taken: what the network takes by name: key=..., mask=..., statistics=..., state=...,
            memory=...

    Returns:
        Pass(loss, prediction, grads, observed, dx, dtaken); grads in structure, shapes and dtypes
        of params.

    Raises:
        TypeError, ValueError: naming what was given, what was expected, which layer, what to do.
            An integer class or token that doesn't exist raises where its value is at hand; inside
            your own jit it makes loss and gradient NaN.

    Source: Rumelhart, Hinton & Williams (1986), Learning representations by back-propagating
    errors.

    Example:
        >>> params = ((jnp.zeros((2, 3)), jnp.zeros(2)),)
        >>> step = manual_pass(params, jnp.ones((4, 3)), jnp.array([0, 1, 0, 0]))
        >>> print(step.loss, step.grads[0][1])
        0.6931472 [-0.25  0.25]
    """
    return Pass(*_run(Pass._fields, params, x, y, network, loss, weights, taken))


def manual_grads(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> Tree:
    """The gradient ∂J/∂params by hand-derived backpropagation, with params' structure.

        dZ[L] = w (A[L] - Y),   dZ[l] = W[l+1]ᵀ dZ[l+1] ⊙ g'(Z[l]),   dW[l] = dZ[l] A[l-1]ᵀ

    Args, Raises, Source: as for `manual_pass`, whose field `grads` this is.

    Returns:
        The gradient, in structure, shapes and dtypes of params.

    Example:
        >>> network = mlp([2, 5, 3], hidden=tanh)
        >>> params = network.init(jax.random.key(0), jnp.ones((4, 2)))
        >>> grads = manual_grads(params, jnp.ones((4, 2)), jnp.array([0, 1, 2, 0]), network=network)
        >>> grads[0].W.shape
        (5, 2)
    """
    (grads,) = _run(("grads",), params, x, y, network, loss, weights, taken)
    return grads


def manual_value_and_grads(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> tuple[jax.Array, Tree]:
    """The loss J and its gradient by hand-derived backpropagation.

        J = Σ w · loss,   dZ[L] = w (A[L] - Y),   dZ[l] = W[l+1]ᵀ dZ[l+1] ⊙ g'(Z[l])

    Args, Raises, Source: as for `manual_pass`, whose fields `loss` and `grads` these are.

    Returns:
        (loss, grads).

    Example:
        >>> params = (jnp.zeros((1, 2)), jnp.zeros(1))
        >>> loss, (dW, db) = manual_value_and_grads(
        ...     params, jnp.ones((4, 2)), jnp.ones((4, 1)), loss=SquaredError())
        >>> print(loss, dW, db)
        0.5 [[-1. -1.]] [-1.]
    """
    value, grads = _run(("loss", "grads"), params, x, y, network, loss, weights, taken)
    return value, grads


def predict(params: Tree, x: Any, *, network: Layer | None = None, **taken: Any) -> jax.Array:
    """The network's prediction, Z[L], not in training: the forward pass of network.inference().

        A[l] = g(W[l] A[l-1] + b[l]),   prediction = Z[L]

    Args:
        params: as for `manual_pass`.
        x: (m, ...), the examples.
        network: the network, the one that is trained.
        **taken: what `network.inference()` takes by name.

    Returns:
        (m, ..., n_L), logits; a loss's `activate` makes probabilities of them. With a loss that
        holds the last layer, what that layer takes: `LinearCrossEntropy.logits` makes logits of it.

    Raises:
        TypeError, ValueError: as for `manual_pass`.

    Source: Rumelhart, Hinton & Williams (1986).

    Example:
        >>> print(predict((jnp.eye(2), jnp.ones(2)), jnp.array([[1.0, 2.0]])))
        [[2. 3.]]
    """
    check_arrays(params, x=x)
    check_taken_arrays(taken)
    if network is not None:
        check_tokens(network, x, None)
    return _compiled_forward(params, x, taken, network=network)


Unweighted = Callable[[tuple[int, ...], Any, jax.Array | None], jax.Array]
"""unweighted(shape, dtype, counts) -> the weights where none are given."""


class Sweep(NamedTuple):
    """What one sweep with any visit yields."""

    loss: jax.Array
    prediction: jax.Array
    seen: Tree
    dx: jax.Array
    dloss_params: Tree
    residuals: Tree
    weights: jax.Array
    error: jax.Array
    """The first error, ∂J/∂prediction: where another walk over the same residuals starts."""


def sweep(
    visit: Visit,
    network: Layer,
    loss: Loss,
    params: Tree,
    loss_params: Tree,
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    taken: dict[str, Any],
    *,
    unweighted: Unweighted | None = None,
    others: tuple[Tree, ...] = (),
) -> Sweep:
    """Forward, first error, and the walk back with this visit: what is compiled everywhere.

    Args:
        visit: visit(layer, dout, params, residuals, *others) -> (what was seen, dx), for each leaf.
        network, loss: what is computed.
        params, loss_params: as `open_params` returns them.
        x, y, weights, taken: as for `manual_pass`.
        unweighted: makes the weights where none are given; by default those of the mean.
        others: further trees for the visit, nested like params.

    Returns:
        Sweep, with what was seen nested like the network.
    """
    prediction, residuals, weights = begin(
        network, loss, params, x, y, weights, taken, unweighted=unweighted
    )
    values, dloss_params, dprediction = loss.sweep(loss_params, prediction, y, weights)
    total = jnp.where(weights == 0, 0, weights * values).sum()
    error = sharded_like(dprediction.astype(prediction.dtype), prediction)
    seen, dx = network.walk(visit, error, params, residuals, *others)
    return Sweep(total, prediction, seen, dx, dloss_params, residuals, weights, error)


def begin(
    network: Layer,
    loss: Loss,
    params: Tree,
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    taken: dict[str, Any],
    *,
    unweighted: Unweighted | None = None,
) -> tuple[jax.Array, Tree, jax.Array]:
    """(prediction, residuals, weights): a sweep up to its first error.

    Args:
        network, loss, params, x, y, weights, taken, unweighted: as for `sweep`.
    """
    check_batch(x, y)
    if weights is not None:
        x = without_idle_spoilers(network, x, weights)
        taken = {
            name: _of_examples_that_count(value, weights)
            if name in network.differentiates
            else value
            for name, value in taken.items()
        }
    prediction, residuals = network.forward(params, x, **taken)
    return prediction, residuals, weights_of(loss, prediction, y, weights, unweighted)


def weights_of(
    loss: Loss,
    prediction: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    unweighted: Unweighted | None = None,
) -> jax.Array:
    """The weight of each prediction, by default that of the mean; targets and weights checked."""
    loss.check(prediction, y)
    expected = prediction.shape[:-1]
    dtype = accumulation_dtype(prediction)
    if weights is None:
        weights = (unweighted or _mean_weights)(expected, dtype, loss.counts(prediction, y))
    check_weights(weights, expected)
    return weights.astype(dtype)


def open_params(params: Tree, network: Layer | None, loss: Loss) -> tuple[Layer, Tree, Tree]:
    """(network, its params, the loss's params), from params as a caller gives them."""
    loss_params: Tree = ()
    if loss.parametric:
        if not isinstance(params, tuple) or len(params) != 2:
            raise TypeError(
                f"{loss!r} has parameters: params must be the pair (network's, loss's), got "
                f"{type(params).__name__}."
            )
        params, loss_params = params
        of_one = hasattr(params, "_fields")
        if of_one and isinstance(network, Sequential) and len(network.layers) > 1:
            raise TypeError(
                f"{loss!r} has parameters: params must be the pair (network's, loss's), but its "
                f"first half, {type(params).__name__}, is of one layer where the network has "
                f"{len(network.layers)}. Give (params, loss.init(key, prediction))."
            )
    try:
        if network is None:
            network = as_network(params)
        if is_dense_chain(network):
            params = read(params)
    except TypeError:
        with contextlib.suppress(ValueError):
            loss.borrow(params)  # it says so when they are a pair
        raise
    return network, params, loss_params if loss.parametric else loss.borrow(params)


def close_params(grads: Tree, dloss_params: Tree, params: Tree, network: Layer, loss: Loss) -> Tree:
    """Gradients in the structure of params: the inverse of `open_params`."""
    if loss.parametric:
        return close_params(grads, (), params[0], network, Loss()), dloss_params
    grads = loss.repay(grads, dloss_params)
    return restore(grads, params) if is_dense_chain(network) else grads


def check_call(
    params: Tree,
    x: Any,
    y: Any,
    weights: Any,
    taken: dict[str, Any],
    network: Layer | None,
    loss: Loss | None,
) -> Loss:
    """Check what is checked on values, outside jit; returns the loss, the default one for None."""
    if network is not None and not isinstance(network, Layer):
        raise TypeError(
            f"network must be a layer, got {network!r}; for example mbp.mlp([64, 128, 10])."
        )
    if loss is None:
        loss = SoftmaxCrossEntropy()
    elif not isinstance(loss, Loss):
        advice = " Call it." if isinstance(loss, type) else ""
        raise TypeError(f"loss must be a Loss such as mbp.SquaredError(), got {loss!r}.{advice}")
    check_arrays(params, x=x, y=y, weights=weights)
    check_taken(network, taken)
    check_taken_arrays(taken)
    if network is not None:
        check_tokens(network, x, weights)
    check_classes(loss, y, weights, functools.partial(_units, params, x, taken, network, loss))
    return loss


def _run(
    wanted: tuple[str, ...],
    params: Tree,
    x: Any,
    y: Any,
    network: Layer | None,
    loss: Loss | None,
    weights: Any,
    taken: dict[str, Any],
) -> Any:
    loss = check_call(params, x, y, weights, taken, network, loss)
    return _compiled(params, x, y, weights, taken, network=network, loss=loss, wanted=wanted)


@functools.partial(jax.jit, static_argnames=("network", "loss", "wanted"))
def _compiled(
    params: Tree,
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    taken: dict[str, Any],
    *,
    network: Layer | None,
    loss: Loss,
    wanted: tuple[str, ...],
) -> tuple[Any, ...]:
    network, tree, loss_params = open_params(params, network, loss)
    step = sweep(taken_visit, network, loss, tree, loss_params, x, y, weights, taken)
    dparams, dtaken = gathered(network, step.seen)
    grads = close_params(dparams, step.dloss_params, params, network, loss)
    fields = {
        "loss": step.loss,
        "prediction": step.prediction,
        "grads": tree_sharded_like(grads, params),
        "observed": network.observe(step.residuals),
        "dx": sharded_like(step.dx, x),
        "dtaken": dtaken,
    }
    return tuple(fields[name] for name in wanted)


@functools.partial(jax.jit, static_argnames=("network",))
def _compiled_forward(
    params: Tree, x: jax.Array, taken: dict[str, Any], *, network: Layer | None
) -> jax.Array:
    network, tree, _ = open_params(params, network, Loss())
    network = network.inference()
    check_taken(network, taken)
    return network.forward(tree, x, **taken)[0]


def _mean_weights(shape: tuple[int, ...], dtype: Any, counts: jax.Array | None) -> jax.Array:
    """1/m for each prediction that counts; 0 for all when none does.

    Divided in the program, not in Python, so that in exact arithmetic it is exactly 1/m.
    """
    if counts is None:
        return jnp.ones(shape, dtype) / jnp.asarray(math.prod(shape), dtype)
    counted = counts.astype(dtype)
    return counted / jnp.maximum(counted.sum(), 1)


def without_idle_spoilers(network: Layer, x: jax.Array, weights: jax.Array) -> jax.Array:
    """x, with 0 for what can't be read in examples of weight 0: in dW, 0 * NaN would be NaN."""
    if x.shape[: weights.ndim] != weights.shape:
        return x
    idle = (weights == 0).reshape(weights.shape + (1,) * (x.ndim - weights.ndim))
    return jnp.where(idle & ~network.readable(x), 0, x)


def _of_examples_that_count(tree: Tree, weights: jax.Array) -> Tree:
    """Memory or states, with 0 for what isn't finite in examples all of whose weights are 0."""
    idle = (weights == 0).all(tuple(range(1, weights.ndim)))

    def clean(leaf: jax.Array) -> jax.Array:
        if leaf.shape[:1] != idle.shape:
            return leaf
        spoilt = idle.reshape(idle.shape + (1,) * (leaf.ndim - 1)) & ~jnp.isfinite(leaf)
        return jnp.where(spoilt, 0, leaf)

    return jax.tree.map(clean, tree)


_found_units: dict[Any, int] = {}


def _units(params: Tree, x: Any, taken: dict[str, Any], network: Layer | None, loss: Loss) -> int:
    """Size of the prediction's last axis, found once for each set of shapes."""
    leaves, structure = jax.tree.flatten((params, x, taken))
    key = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), network, loss)
    if key not in _found_units:

        def forward(params: Tree, x: jax.Array, taken: dict[str, Any]) -> jax.Array:
            opened, tree, _ = open_params(params, network, loss)
            return opened.forward(tree, x, **taken)[0]

        _found_units[key] = jax.eval_shape(forward, params, x, taken).shape[-1]
    return _found_units[key]
