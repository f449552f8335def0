"""Error transport: a backward pass whose errors are carried by another rule than Wᵀ.

The notes' hidden error is dZ[l] = W[l+1]ᵀ dZ[l+1] ⊙ g'(Z[l]). A `Transport` puts something else in
place of the product with W[l+1]ᵀ. All else stays what it is:

    forward            as ever, with W
    first error        dZ[L] = w (A[L] - Y), the loss's own: the last layer's gradient is true
    each layer         dW[l] = dZ[l] A[l-1]ᵀ, from the error that arrived there
    without matrices   activations, pooling, norms, dropout pass the error truthfully
    skip, parallel     what is used twice has errors that add, as ever

So what comes out is no gradient of anything; how far it is from one is the angle, of each layer,

    θ = ∠(what the layer learns from, its true gradient), in degrees    `manual_bp.signals.angles`

below 90° a small enough step along it decreases J, as far as this layer goes. Both are walks
over the same residuals, from the same first error: one forward pass, two backward passes. Where
`Checkpoint` and `Reversible` keep no residuals, each walk recomputes them.

A loss that holds the last layer (LinearCrossEntropy) carries the error through a W of its own,
which no rule sees; it is refused.

The rules are in `transport_rules` and `transport_direct`, which matrices of which layers they are
about in `transport_contract`.

Cost  FeedbackAlignment, SignSymmetry: of a backward pass; DirectFeedbackAlignment: for each layer
      of m inputs of n entries m C n multiplications, in place of W's; the others: element-wise.
      `transported_grads` leaves out the true walk.
Memory  B: as much as the weights; of DirectFeedbackAlignment C times one example's inputs of all
      layers with matrices, much for large images.
Sources Lillicrap et al. (2016), doi:10.1038/ncomms13276; Nøkland (2016), arXiv:1609.01596
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax

from manual_bp.gradients import check_call, close_params, open_params, sweep
from manual_bp.layer import Combinator, Layer, Loss, Tree, backward_visit
from manual_bp.signals.angles import angle
from manual_bp.signals.transport_contract import Carried, Transport, matrices, numbered


class TransportedPass(NamedTuple):
    """What a pass with transported errors yields."""

    loss: jax.Array
    """J, a scalar."""
    prediction: jax.Array
    """What the network makes of x."""
    grads: Tree
    """What layers learn from, in the structure of params: not a gradient of J."""
    true_grads: Tree
    """∂J/∂params, in the structure of params."""
    angles: Tree
    """Between the two, in degrees, nested like the network: for each layer one number, (depth,)
    where it is repeated, () where it has no parameters."""
    observed: Tree
    """What layers gathered of this batch, as for `manual_pass`."""


def transported_pass(
    params: Tree,
    x: Any,
    y: Any,
    *,
    transport: Transport,
    feedback: Tree = None,
    transport_key: jax.Array | None = None,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> TransportedPass:
    """What layers learn from when errors are carried by another rule, and how far it is from true.

        dx[l] = transport(dZ[l]) in place of W[l]ᵀ dZ[l],   θ[l] = ∠(dparams[l], ∂J/∂params[l])

    A layer's angle is that of all its parameters as one vector; where parameters are tied, of the
    sums over their places, at the first of them. A gradient of zeros has an angle of 90° with any
    other and of 0° with another one of zeros. Gradients of what the network takes by name, memory
    or state, aren't returned.

    Args:
        params, x, y, network, loss, weights, **taken: as for `manual_pass`.
        transport: the rule, such as FeedbackAlignment().
        feedback: what transport.init(key, params, x, network=network) made, if the rule takes it.
        transport_key: a random key, a new one at each step, if the rule takes it: NoisyErrors and
            QuantizedErrors(stochastic=True). (`key` is the network's own, for its dropout.)

    Returns:
        TransportedPass(loss, prediction, grads, true_grads, angles, observed).

    Raises:
        TypeError, ValueError: as `manual_pass` does; for what the rule takes and isn't given, or
            the other way round; for feedback of another network; for a layer through which
            transport isn't defined; for a loss with parameters.

    Source: Lillicrap, Cownden, Tweed & Akerman (2016); Nøkland (2016), arXiv:1609.01596.

    Example:
        >>> network, x, y = mlp([2, 5, 3]), jnp.eye(4, 2), jnp.array([0, 1, 2, 0])
        >>> params, rule = network.init(jax.random.key(0), x), FeedbackAlignment()
        >>> feedback = rule.init(jax.random.key(1), params, x, network=network)
        >>> step = transported_pass(
        ...     params, x, y, transport=rule, feedback=feedback, network=network)
        >>> step.grads[0].W.shape, len(step.angles), bool(step.angles[1] < 1e-4)
        ((5, 2), 2, True)
    """
    wanted = TransportedPass._fields
    given = (params, x, y, network, loss, weights, taken)
    return TransportedPass(*_run(wanted, transport, feedback, transport_key, *given))


def transported_grads(
    params: Tree,
    x: Any,
    y: Any,
    *,
    transport: Transport,
    feedback: Tree = None,
    transport_key: jax.Array | None = None,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> Tree:
    """What layers learn from when errors are carried by another rule: one backward pass.

        dx[l] = transport(dZ[l]) in place of W[l]ᵀ dZ[l]

    Args, Raises, Source: as for `transported_pass`, whose field `grads` this is.

    Returns:
        Gradients, in structure, shapes and dtypes of params.

    Example:
        >>> params = ((jnp.eye(2), jnp.ones(2)), (jnp.eye(2), jnp.ones(2)))
        >>> x, y = jnp.ones((1, 2)), jnp.array([0])
        >>> grads = transported_grads(params, x, y, transport=SignSymmetry())
        >>> print(grads[0][1])
        [-0.35355338  0.35355338]
    """
    given = (params, x, y, network, loss, weights, taken)
    (grads,) = _run(("grads",), transport, feedback, transport_key, *given)
    return grads


def _run(
    wanted: tuple[str, ...],
    transport: Transport,
    feedback: Tree,
    transport_key: jax.Array | None,
    params: Tree,
    x: Any,
    y: Any,
    network: Layer | None,
    loss: Loss | None,
    weights: Any,
    taken: dict[str, Any],
) -> Any:
    if not isinstance(transport, Transport):
        advice = " Call it." if isinstance(transport, type) else ""
        raise TypeError(
            f"transport must be a rule such as mbp.FeedbackAlignment(), got {transport!r}.{advice}"
        )
    _check_given(transport, {"feedback": feedback, "transport_key": transport_key})
    loss = check_call(params, x, y, weights, taken, network, loss)
    fixed: Any = {"network": network, "loss": loss, "transport": transport, "wanted": wanted}
    return _compiled(params, x, y, weights, taken, feedback, transport_key, **fixed)


@functools.partial(jax.jit, static_argnames=("network", "loss", "transport", "wanted"))
def _compiled(
    params: Tree,
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    taken: dict[str, Any],
    feedback: Tree,
    transport_key: jax.Array | None,
    *,
    network: Layer | None,
    loss: Loss,
    transport: Transport,
    wanted: tuple[str, ...],
) -> tuple[Any, ...]:
    _check_own_params(loss, loss.parametric)
    network, tree, loss_params = open_params(params, network, loss)
    _check_own_params(loss, bool(jax.tree.leaves(loss_params)))
    true = sweep(backward_visit, network, loss, tree, loss_params, x, y, weights, taken)
    trees = (true.error, tree, true.residuals)
    numbers = numbered(network, *trees)
    others = {"feedback": feedback, "transport_key": numbers}
    if "feedback" in transport.takes:
        _check_nested(transport, network, feedback, tree)
    visit = functools.partial(_visit, transport, true.error, transport_key)
    seen, _ = network.walk(visit, *trees, *(others[name] for name in transport.takes))
    grads, true_grads = network.gather(seen), network.gather(true.seen)
    fields = {
        "loss": true.loss,
        "prediction": true.prediction,
        "grads": close_params(grads, (), params, network, loss),
        "true_grads": close_params(true_grads, (), params, network, loss),
        "observed": network.observe(true.residuals),
    }
    if "angles" in wanted:
        fields["angles"] = _angles(network, grads, true_grads, network.gather(numbers))
    return tuple(fields[name] for name in wanted)


def _visit(
    transport: Transport,
    error: jax.Array,
    key: jax.Array | None,
    layer: Layer,
    dout: jax.Array,
    params: Tree,
    residuals: Tree,
    *others: Tree,
) -> tuple[Tree, jax.Array]:
    """The rule where there are matrices, the layer's own backward where there are none."""
    names = matrices(layer)
    if not names:
        return layer.backward(params, residuals, dout)
    given = dict(zip(transport.takes, others, strict=True))
    if "transport_key" in given and key is not None:
        key = jax.random.fold_in(key, given["transport_key"]._asdict()[names[0]])
    carried = Carried(given.get("feedback"), key, error)
    return transport.backward(layer, params, residuals, dout, carried)


def _angles(network: Layer, ours: Tree, theirs: Tree, numbers: Tree) -> Tree:
    """The angle of each layer; the axes that numbers have count its repetitions."""
    if isinstance(network, Combinator):
        none = ((),) * len(network.children)  # tied to another layer's
        each = zip(network.children, ours or none, theirs or none, numbers or none, strict=True)
        return tuple(_angles(*trees) for trees in each)
    leaves = jax.tree.leaves(ours)
    if not leaves:
        return ()
    return angle(leaves, jax.tree.leaves(theirs), jax.tree.leaves(numbers)[0].ndim)


def _check_given(transport: Transport, given: dict[str, Any]) -> None:
    """Raise a TypeError unless the rule is given just what it takes."""
    make = {
        "feedback": "Make it once, feedback = transport.init(key, params, x, network=network), "
        "and give the same at every step.",
        "transport_key": "Give jax.random.key(...), a new one at every step.",
    }
    for name, value in given.items():
        if name in transport.takes and value is None:
            raise TypeError(f"{transport!r} takes {name}. {make[name]}")
        if name not in transport.takes and value is not None:
            raise TypeError(f"{transport!r} takes no {name}: leave it out.")


def _check_own_params(loss: Loss, has_own: bool) -> None:
    if has_own:
        raise TypeError(
            f"{loss!r} holds the last layer: its error passes through a W that no rule of "
            "transport sees. End the network with Dense(classes) and use SoftmaxCrossEntropy(): "
            "the same loss, of a layer that a rule can carry the error through."
        )


def _check_nested(transport: Transport, network: Layer, feedback: Tree, params: Tree) -> None:
    """Raise a ValueError unless feedback is nested as params are, () where they are tied."""
    tied = params == () and isinstance(feedback, tuple) and not feedback
    if not isinstance(network, Combinator) or tied:
        return
    count = len(network.children)
    if type(feedback) is not tuple or len(feedback) != count:
        given = type(feedback).__name__
        given += f" of {len(feedback)}" if isinstance(feedback, tuple | list) else ""
        raise ValueError(
            f"{network!r}: feedback must be nested like the network, a tuple of {count}, got a "
            f"{given}. Make it with {transport!r}.init(key, params, x, network=network)."
        )
    for child, *entries in zip(network.children, feedback, params or ((),) * count, strict=True):
        _check_nested(transport, child, *entries)
