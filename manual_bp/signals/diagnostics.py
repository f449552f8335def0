"""Diagnostics: what one looks at when training goes wrong, cheap enough to leave on.

Of each layer, from the sweep that makes the gradient, with ‖v‖ = √(Σ v²) over all entries of v:

    norm/dZ      ‖dZ‖ of a dense layer, norm/dout of any other: the error that arrives there
    dead/A       share of units u with g'(Z_nu) = 0 for every example and place n, of activations
                 that are flat on an interval: relu, relu6, squared_relu and those named hard_
    saturated/A  share of entries with |g'(Z_nu)| < max |g'| / 16, of all other activations but
                 identity and leaky_relu, and of those named hard_

of the gradient, and of an optimiser's step from W to W', which come later,

    norm/dW      ‖dW‖, and likewise of every other parameter
    update/W     ‖W' - W‖ / ‖W‖

What they tell. Errors that shrink from layer to layer on their way down vanish, errors that grow
explode; dv is ∂J/∂v with the examples' weights in it, so that norms of batches of any size compare.
A dead unit of relu has no gradient at this batch, and one that is dead at every batch never will. A
saturated entry passes less than a sixteenth of the error that it could pass: sigmoid beyond
|z| = 4.13, tanh beyond 2.06, softsign beyond 3. An update of 10⁻³ of its weights is
usual; far less is standstill, far more is noise.

Derivation.  dA ⊙ g'(Z) is what an activation makes of dA, from what it kept of Z. Of dA = 1 it
makes g'(Z): no function is evaluated again, and relu's is its mask. What the largest |g'| is, is a
property of g; where it isn't a limit, g'' = 0 there.

W' - W is the step as it was taken, rounding included. It is had from what is stored anyway; that
of an optimiser's updates would have to be stored first, which costs twice as much.

Activations are looked at where they are layers, and in dense layers. What gates, as in LSTM, GRU
and GatedMLP, or has learnt slopes, as PReLU, has norms alone.

Cost  a pass over each dZ or dout and each kept g'; a pass over W, W' and W again for the updates,
      one over dW for its norm; memory for scalars. `python -m benchmarks diagnostics` measures it.
Where ill-conditioned  squares of float32 below 1e-19 are 0 and above 1e19 are ∞, and so are norms
      of nothing but those. W' - W holds what W' can hold: in bfloat16 little.
Shapes  a scalar each, in at least float32; (depth,) where a layer is repeated, the first step first
Sources  Glorot & Bengio (2010), Understanding the difficulty of training deep feedforward neural
      networks (errors, saturation); Maas, Hannun & Ng (2013), Rectifier nonlinearities improve
      neural network acoustic models (dead units)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp import activations
from manual_bp.activation import Activation
from manual_bp.combinators.reversible import Reversible
from manual_bp.combinators.stack import Stack
from manual_bp.gradients import check_call, close_params, open_params, sweep
from manual_bp.inputs import check_arrays
from manual_bp.layer import Combinator, Layer, Loss, Static, Tree, accumulation_dtype
from manual_bp.layers.dense import Dense

SATURATED = 1 / 16
"""An entry is saturated when |g'| is below this share of the largest |g'|: a power of two, so that
what is compared is exact. softsign is there beyond 3."""


class Slope(NamedTuple):
    """What is known of an activation's g'."""

    flat: bool = False
    """Whether it is 0 on an interval: then units can be dead."""
    largest: Callable[[Any], float] = lambda g: math.inf
    """largest(g) -> the largest |g'(z)| over all z; ∞ where nothing is told saturated."""


SLOPES: dict[type[Activation], Slope] = {
    activations.Identity: Slope(),
    activations.Relu: Slope(flat=True),
    activations.LeakyRelu: Slope(),
    activations.Relu6: Slope(flat=True),
    activations.SquaredRelu: Slope(flat=True),
    activations.Elu: Slope(largest=lambda g: max(1, abs(g.alpha))),
    activations.Celu: Slope(largest=lambda g: 1 if g.alpha > 0 else math.inf),
    activations.Selu: Slope(largest=lambda g: g.SCALE * g.ALPHA),
    activations.Sigmoid: Slope(largest=lambda g: 1 / 4),
    activations.LogSigmoid: Slope(largest=lambda g: 1),
    activations.HardSigmoid: Slope(flat=True, largest=lambda g: 1 / 6),
    activations.Tanh: Slope(largest=lambda g: 1),
    activations.HardTanh: Slope(flat=True, largest=lambda g: 1),
    activations.Softsign: Slope(largest=lambda g: 1),
    activations.Softplus: Slope(largest=lambda g: 1),
    activations.Squareplus: Slope(largest=lambda g: 1),
    activations.Gelu: Slope(largest=lambda g: 1.1289),
    activations.GeluTanh: Slope(largest=lambda g: 1.1290),
    activations.Silu: Slope(largest=lambda g: 1.0998),
    activations.HardSilu: Slope(flat=True, largest=lambda g: 3 / 2),
    activations.Mish: Slope(largest=lambda g: 1.0885),
}
"""What is known of g', by kind of activation. Enter one of your own here."""


class DiagnosedPass(NamedTuple):
    """One sweep and what is to be known of it."""

    loss: jax.Array
    """J, a scalar."""
    prediction: jax.Array
    """What the network makes of x: Z[L], its logits."""
    grads: Tree
    """∂J/∂params, in the structure of params."""
    observed: Tree
    """What layers gathered of this batch, nested like the network."""
    diagnostics: dict[str, jax.Array]
    """"norm/dZ1", "dead/A1", "saturated/A2", ...: a number each."""


class Measured(NamedTuple):
    """What is measured of one layer, and its gradients."""

    names: Static
    values: tuple[jax.Array, ...]  # a dict would come out of a scan sorted
    dparams: Tree


def diagnosed_pass(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> DiagnosedPass:
    """The gradient, and beside it norms of errors, dead units and saturation.

        norm/dZ = √(Σ dZ²),   dead/A = share of units whose g'(Z) is 0 for all examples,
        saturated/A = share of entries with |g'(Z)| < max |g'| / 16

    Names are those of `intermediates` after a slash: layers count from 1, children of a combinator
    after a dot, as in "norm/dZ2.1". A dense layer has "norm/dZ", any other "norm/dout". Its
    activation has "dead/A" or "saturated/A", one that is a layer of its own "dead/out" or
    "saturated/out"; units lie on the last axis. Examples of weight 0 count there as others do. Of a
    layer that is repeated the steps are stacked.

    Args:
        params, x, y, network, loss, weights, **taken: as for `manual_pass`.

    Returns:
        DiagnosedPass(loss, prediction, grads, observed, diagnostics), the first four those of
        `manual_pass`.

    Raises:
        TypeError, ValueError: as `manual_pass` does.
        NotImplementedError: for an activation of your own that SLOPES doesn't have.

    Source: Glorot & Bengio (2010); Maas, Hannun & Ng (2013).

    Example:
        >>> network = mlp([2, 4, 3])
        >>> params = network.init(jax.random.key(0), jnp.ones((5, 2)))
        >>> step = diagnosed_pass(params, jnp.ones((5, 2)), jnp.zeros(5, int), network=network)
        >>> list(step.diagnostics)
        ['norm/dZ1', 'dead/A1', 'norm/dZ2']
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    found = _compiled(params, x, y, weights, taken, network=network, loss=loss)
    total, prediction, grads, observed, names, values = found
    diagnostics = dict(zip(names.value, values, strict=True))
    return DiagnosedPass(total, prediction, grads, observed, diagnostics)


def gradient_norms(
    grads: Tree, *, network: Layer | None = None, loss: Loss | None = None
) -> dict[str, jax.Array]:
    """The norm of each parameter's gradient.

        norm/dW = √(Σ dW²)

    Args:
        grads: as `manual_grads` returns them, nested like params.
        network: the network whose gradients these are; the notes' MLP unless given.
        loss: needed where the loss has parameters of its own: then grads are a pair.

    Returns:
        {"norm/dW1": ..., "norm/db1": ...}, named as `intermediates` names gradients: scalars in at
        least float32, (depth,) where a layer is repeated.

    Raises:
        TypeError: when grads can't be those of the network.

    Source: Glorot & Bengio (2010).

    Example:
        >>> norms = gradient_norms(((jnp.array([[3.0, 4.0]]), jnp.ones(1)),))
        >>> print({name: float(each) for name, each in norms.items()})
        {'norm/dW1': 5.0, 'norm/db1': 1.0}
    """
    check_arrays(grads)
    names, values = _compiled_norms(grads, network=network, loss=loss or Loss())
    return dict(zip(names.value, values, strict=True))


def update_ratios(
    params: Tree, updated: Tree, *, network: Layer | None = None, loss: Loss | None = None
) -> dict[str, jax.Array]:
    """How far a step went beside the parameters it was taken from, for each of them.

        update/W = √(Σ (W' - W)²) / √(Σ W²)

    Args:
        params: as for `manual_pass`, before the step.
        updated: after it: optax.apply_updates(params, updates).
        network: the network whose params these are; the notes' MLP unless given.
        loss: needed where the loss has parameters of its own: then params are a pair.

    Returns:
        {"update/W1": ..., "update/b1": ...}, named as by `intermediates`: scalars in at least
        float32, (depth,) where a layer is repeated. 0 for what didn't move, otherwise ∞ for a
        parameter that was 0, as biases are at first.

    Raises:
        TypeError, ValueError: when `updated` isn't nested like params, or a shape differs.

    Source: Bottou (2012), Stochastic gradient descent tricks, on the size of a step.

    Example:
        >>> params = ((jnp.array([[3.0, 4.0]]), jnp.ones(1)),)
        >>> ratios = update_ratios(params, jax.tree.map(lambda leaf: 1.5 * leaf, params))
        >>> print({name: float(ratio) for name, ratio in ratios.items()})
        {'update/W1': 0.5, 'update/b1': 0.5}
    """
    check_arrays(params)
    check_arrays(updated)
    _check_alike(params, updated)
    names, values = _compiled_ratios(params, updated, network=network, loss=loss or Loss())
    return dict(zip(names.value, values, strict=True))


def visit(
    layer: Layer, dout: jax.Array, params: Tree, residuals: Tree
) -> tuple[Measured, jax.Array]:
    """A layer's gradients, the norm of its error, and where its activation passes none."""
    dparams, dx = layer.backward(params, residuals, dout)
    if isinstance(layer, Dense):
        named = {"norm/dZ": norm(layer.error(residuals, dout))}
        found = shares(layer.activation, layer.kept(residuals), dout)
        named |= {f"{name}/A": share for name, share in found.items()}
    else:
        named = {"norm/dout": norm(dout)}
        if isinstance(layer, Activation):
            found = shares(layer, residuals, dout)
            named |= {f"{name}/out": share for name, share in found.items()}
    return Measured(Static(tuple(named)), tuple(named.values()), dparams), dx


def norm(values: jax.Array, steps: int = 0) -> jax.Array:
    """√(Σ values²) over all axes but the first `steps`, in at least float32."""
    wide = values.astype(accumulation_dtype(values))
    return jnp.sqrt(jnp.square(wide).sum(tuple(range(steps, values.ndim))))


def shares(activation: Activation, kept: Tree, dout: jax.Array) -> dict[str, jax.Array]:
    """The shares of dead units and of saturated entries; dout is there for its shape alone."""
    if type(activation) not in SLOPES:
        name = type(activation).__name__
        raise NotImplementedError(
            f"{activation!r} isn't in manual_bp.signals.diagnostics.SLOPES, which says when an "
            f"activation is dead or saturated. Enter your own: SLOPES[{name}] = Slope(flat=False, "
            "largest=lambda g: 1.0), with the largest |g'|."
        )
    known, found = SLOPES[type(activation)], {}
    dtype = accumulation_dtype(dout)
    size = jnp.abs(activation.scale(kept, jnp.ones_like(dout)).astype(dtype))  # |g'|
    if known.flat:
        examples = tuple(range(max(dout.ndim - 1, 1)))
        alive = (size > 0).astype(dtype).max(examples)
        found["dead"] = (1 - alive).mean()
    largest = known.largest(activation)
    if largest < math.inf:
        # first of each example: float32 has no odd numbers beyond 2²⁴
        saturated = (size < SATURATED * largest).astype(dtype)
        found["saturated"] = saturated.mean(tuple(range(1, dout.ndim))).mean()
    return found


@functools.partial(jax.jit, static_argnames=("network", "loss"))
def _compiled(
    params: Tree,
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    taken: dict[str, Any],
    *,
    network: Layer | None,
    loss: Loss,
) -> tuple[Any, ...]:
    network, tree, loss_params = open_params(params, network, loss)
    step = sweep(visit, network, loss, tree, loss_params, x, y, weights, taken)
    dparams = network.gather(_dparams(network, step.seen))
    named = {
        f"{name}{place}": value
        for place, _, (seen,) in _layers(network, step.seen)
        for name, value in zip(seen.names.value, seen.values, strict=True)
    }
    return (
        step.loss,
        step.prediction,
        close_params(dparams, step.dloss_params, params, network, loss),
        network.observe(step.residuals),
        Static(tuple(named)),  # a dict would come out of jit sorted
        list(named.values()),
    )


@functools.partial(jax.jit, static_argnames=("network", "loss"))
def _compiled_norms(
    grads: Tree, *, network: Layer | None, loss: Loss
) -> tuple[Static, list[jax.Array]]:
    found = _parameters(network, loss, grads)
    return (
        Static(tuple(f"norm/d{name}" for name, *_ in found)),
        [norm(grad, steps) for _, steps, (grad,) in found],
    )


@functools.partial(jax.jit, static_argnames=("network", "loss"))
def _compiled_ratios(
    params: Tree, updated: Tree, *, network: Layer | None, loss: Loss
) -> tuple[Static, list[jax.Array]]:
    found = _parameters(network, loss, params, updated)
    return (
        Static(tuple(f"update/{name}" for name, *_ in found)),
        [_ratio(before, after, steps) for _, steps, (before, after) in found],
    )


def _ratio(before: jax.Array, after: jax.Array, steps: int) -> jax.Array:
    wide = accumulation_dtype(before)
    moved = norm(after.astype(wide) - before.astype(wide), steps)
    return jnp.where(moved == 0, 0, moved / norm(before, steps))


def _parameters(
    network: Layer | None, loss: Loss, *trees: Tree
) -> list[tuple[str, int, tuple[jax.Array, ...]]]:
    """(name, how many axes of steps come first, its leaf in each tree) of every parameter."""
    opened = [open_params(tree, network, loss) for tree in trees]
    network = opened[0][0]
    places = list(_layers(network, *(tree for _, tree, _ in opened)))
    if loss.parametric:
        places.append((" of the loss", 0, tuple(own for *_, own in opened)))
    return [
        (f"{pairs[0][0]}{place}", steps, tuple(leaf for _, leaf in pairs))
        for place, steps, parts in places
        for pairs in zip(*map(_fields, parts), strict=True)
    ]


def _layers(
    network: Layer, *trees: Tree, place: str = "", steps: int = 0
) -> Iterator[tuple[str, int, tuple[Tree, ...]]]:
    """(place, how many axes of repeated steps come first, its part of each tree) of every layer."""
    if not isinstance(network, Combinator):
        yield place or "1", steps, trees
        return
    count, prefix = len(network.children), f"{place}." if place else ""
    steps += isinstance(network, Stack | Reversible)
    parts = zip(*(tree or ((),) * count for tree in trees), strict=True)  # () is tied elsewhere
    for number, (child, each) in enumerate(zip(network.children, parts, strict=True), start=1):
        yield from _layers(child, *each, place=f"{prefix}{number}", steps=steps)


def _dparams(network: Layer, seen: Tree) -> Tree:
    """The gradients that each layer saw, nested like the network: what `gather` takes."""
    if isinstance(network, Combinator):
        return tuple(map(_dparams, network.children, seen))
    return seen.dparams


def _fields(params: Tree) -> list[tuple[str, jax.Array]]:
    """A layer's parameters with their names, "W", "b"."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


def _check_alike(params: Tree, updated: Tree) -> None:
    """Raise unless what was updated is nested like params and as large."""
    structures = [jax.tree.flatten(tree)[1] for tree in (params, updated)]
    advice = "Give what optax.apply_updates(params, updates) returns."
    if structures[0] != structures[1]:
        raise TypeError(
            f"updated must be nested like params, {structures[0]}, got {structures[1]}. {advice}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(updated), strict=True)
    for (path, before), after in pairs:
        if before.shape != after.shape:
            raise ValueError(
                f"updated{jax.tree_util.keystr(path)} has shape {tuple(after.shape)}, expected "
                f"{tuple(before.shape)}, the parameter's. {advice}"
            )
