"""The gradient of each example, its norm, and inner products between examples, from one sweep.

    g_i = ∂(Σ_t w_it loss_it)/∂params,   n_i = ‖g_i‖,   K_ij = <g_i, g_j>

with w_it, unless weights are given, one over how many predictions of example i count: g_i is what
`manual_grads` makes of that example alone, and their mean is the gradient of the batch (where all
have equally many predictions that count).

A backward pass by hand holds, at each layer, the errors e_i of all examples and their inputs a_i.
The gradient is Σ_i e_i a_iᵀ, and each example's share of it is still there before the sum:
`manual_bp.signals.factors` says how norms and inner products follow from e and a without the share
itself. Autodiff has summed before one can look; vmap of it forms all m gradients.

Derivation.  With weights of 1 row i of each error is the error of example i alone, since no layer
but one that mixes examples carries anything from one row to another.

Memory  norms: as one gradient, errors and inputs of one layer at a time. The factors of tied
parameters are held until the sweep is over, since the uses of one parameter meet only then.
Gradients: m times the parameters.
Source  Goodfellow (2015), arXiv:1510.01799; Rochette, Manoel & Tramel (2019), arXiv:1912.06015
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.combinators.tied import Tied
from manual_bp.gradients import Sweep, check_call, close_params, open_params, sweep
from manual_bp.layer import Combinator, Layer, Loss, Static, Tree, Visit
from manual_bp.paths import at, replaced
from manual_bp.signals.factored import factors, is_form, loss_factors
from manual_bp.signals.factors import Form, Uses, each_gradient, inner_products, squared_norms


def per_example_grads(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> Tree:
    """The gradient of each example, g_i = ∂loss_i/∂params.

        g_i = Σ_s e_is a_isᵀ,   e the errors and a the inputs of a layer, s the places

    Args:
        params, x, y, network, loss, **taken: as for `manual_grads`.
        weights: one for each prediction, (m,) or (m, T): g_i is the gradient of Σ_t w_it loss_it.
            Unless given, of the mean over the example's predictions that count.

    Returns:
        Nested like params, each array with m in front, (m, *its shape).

    Raises:
        TypeError: for a layer that mixes examples (BatchNorm), or one of an unknown kind; else as
            `manual_grads`.

    Source: Goodfellow (2015), arXiv:1510.01799.

    Example:
        >>> params = ((jnp.zeros((2, 3)), jnp.zeros(2)),)
        >>> grads = per_example_grads(params, jnp.ones((4, 3)), jnp.array([0, 1, 0, 0]))
        >>> grads[0][0].shape
        (4, 2, 3)
        >>> print(grads[0][1][:2])
        [[-0.5  0.5]
         [ 0.5 -0.5]]
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    return _compiled_grads(params, x, y, weights, taken, network=network, loss=loss)


def per_example_norms(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> jax.Array:
    """The length of each example's gradient over all parameters, without forming the gradients.

        n_i = ‖g_i‖ = √(Σ over parameters of ‖e_i‖² ‖a_i‖²),   for one place

    Args, Raises: as for `per_example_grads`.

    Returns:
        (m,), in the unit of the loss over that of the params.

    Source: Goodfellow (2015), arXiv:1510.01799.

    Example:
        >>> params = ((jnp.zeros((2, 3)), jnp.zeros(2)),)
        >>> x = jnp.array([[1.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
        >>> print(per_example_norms(params, x, jnp.array([0, 1])))
        [1.        2.5495098]
    """
    squared = per_example_squared_norms(
        params, x, y, network=network, loss=loss, weights=weights, **taken
    )
    return jnp.sqrt(total_of_examples(squared, len(x)))


def per_example_squared_norms(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> Tree:
    """‖g_i‖² of each parameter by itself: which layers an example's gradient is in.

        ‖Σ_s e_is a_isᵀ‖² = Σ_s,s' (e_is · e_is') (a_is · a_is')

    Args, Raises: as for `per_example_grads`.

    Returns:
        Nested like params, with (m,) for each array; (m, depth) for one that `stack` or
        `reversible` repeats.

    Source: Goodfellow (2015), arXiv:1510.01799.

    Example:
        >>> params = ((jnp.zeros((2, 3)), jnp.zeros(2)),)
        >>> x = jnp.array([[1.0, 0.0, 0.0], [2.0, 2.0, 2.0]])
        >>> ((of_W, of_b),) = per_example_squared_norms(params, x, jnp.array([0, 1]))
        >>> print(of_W, of_b)
        [0.5 6. ] [0.5 0.5]
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    return _compiled_norms(params, x, y, weights, taken, network=network, loss=loss)


def gradient_gram(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> jax.Array:
    """Inner products of the examples' gradients: the empirical neural tangent kernel of the loss.

        K_ij = <g_i, g_j> = Σ over parameters, Σ_s,s' (e_is · e_js') (a_is · a_js')

    Args, Raises: as for `per_example_grads`.

    Returns:
        (m, m), symmetric, with ‖g_i‖² on its diagonal.

    Source: Jacot, Gabriel & Hongler (2018), arXiv:1806.07572, for the kernel.

    Example:
        >>> params = ((jnp.zeros((2, 1)), jnp.zeros(2)),)
        >>> print(gradient_gram(params, jnp.array([[1.0], [3.0]]), jnp.array([0, 1])))
        [[ 1. -2.]
         [-2.  5.]]
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    return _compiled_gram(params, x, y, weights, taken, network=network, loss=loss)


def total_of_examples(squared: Tree, examples: int) -> jax.Array:
    """Squared norms of each parameter, (m, ...), as those of all together, (m,)."""
    each = [leaf.reshape(examples, -1).sum(1) for leaf in jax.tree.leaves(squared)]
    return functools.reduce(jnp.add, each) if each else jnp.zeros(examples)


def mean_of_example(shape: tuple[int, ...], dtype: Any, counts: jax.Array | None) -> jax.Array:
    """Weights of predictions (m, ...): one over how many of the example count; 0 if none does."""
    if counts is None:
        return jnp.ones(shape, dtype) / jnp.asarray(math.prod(shape[1:]), dtype)
    counted = counts.astype(dtype)
    of_example = counted.sum(tuple(range(1, len(shape))), keepdims=True)
    return counted / jnp.maximum(of_example, 1)


def over_factors(
    of_uses: Callable[[Uses], Tree],
    params: Tree,
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    taken: dict[str, Any],
    network: Layer | None,
    loss: Loss,
    *,
    late: bool = False,
) -> tuple[Tree, Sweep]:
    """of_uses(uses) of each parameter, from one sweep: (nested like params, the sweep).

    Args:
        of_uses: makes an array of what one parameter's gradient is made of. Of one that a scan
            repeats the arrays are stacked over the steps.
        params, x, y, weights, taken, network, loss: as a caller of `manual_grads` gives them, after
            `check_call`.
        late: whether all factors are held until the sweep is over, as those of shared parameters
            are anyway; else each layer's are used when its error arrives.
    """
    opened, tree, loss_params = open_params(params, network, loss)
    step = sweep(
        visit_of(of_uses),
        opened,
        loss,
        tree,
        loss_params,
        x,
        y,
        weights,
        taken,
        unweighted=mean_of_example,
        others=(held(opened, tree, loss, loss_params, late=late),),
    )
    of_loss = uses_of(loss_factors(loss, loss_params, step.prediction, y, step.weights))
    return gathered_uses(of_uses, step.seen, of_loss, params, opened, loss), step


def held(
    network: Layer, params: Tree, loss: Loss, loss_params: Tree, *, late: bool = False
) -> Tree:
    """Whose factors are held until the sweep is over: nested like params, a `Static` bool for each.

    Those of parameters that are used in several places, whose factors meet only then. All others
    are used when their error arrives: a scan would stack what it holds, a copy of each step's.

    Args:
        network, params, loss, loss_params: as `open_params` returns them.
        late: whether all are.
    """
    borrowed = not loss.parametric and bool(jax.tree.leaves(loss_params))
    return _of_shared(network, jax.tree.map(lambda leaf: Static(late or borrowed), params))


def _of_shared(layer: Layer, marks: Tree) -> Tree:
    """The marks with True at all that is tied."""
    if not isinstance(layer, Combinator) or not marks:
        return marks
    each = tuple(_of_shared(*pair) for pair in zip(layer.children, marks, strict=True))
    if isinstance(layer, Tied):
        (body,) = each
        for first, *_ in layer.groups:  # the walk puts at the others what is at the first
            there = at(body, first, layer, "the body's")
            there = jax.tree.map(lambda mark: Static(True), there, is_leaf=_is_mark)
            body = replaced(body, first, there, layer, "the body's")
        return (body,)
    return each


def _is_mark(tree: Tree) -> bool:
    return isinstance(tree, Static)


def visit_of(of_uses: Callable[[Uses], Tree]) -> Visit:
    """The visit of `factors`: of_uses is taken of them at once, unless they are `held`."""

    def visit(
        layer: Layer, dout: jax.Array, params: Tree, residuals: Tree, held: Tree
    ) -> tuple[Tree, Any]:
        def part(form: Form, mark: Static) -> Tree:
            return form if mark.value else of_uses(Uses(form))

        forms, dx = factors(layer, dout, params, residuals)
        return jax.tree.map(part, forms, held, is_leaf=is_form), dx

    return visit


def gathered_uses(
    of_uses: Callable[[Uses], Tree],
    seen: Tree,
    of_loss: Tree,
    params: Tree,
    network: Layer,
    loss: Loss,
) -> Tree:
    """What a walk with `visit_of` saw, as of_uses of each parameter, nested like params.

    Args:
        of_uses: as the visit had it.
        seen: what the walk saw.
        of_loss: `Uses` of the loss's own parameters, nested like them.
        params: as the caller gave them.
        network, loss: as opened.
    """
    closed = close_params(network.gather(uses_of(seen)), of_loss, params, network, loss)
    return jax.tree.map(lambda each: of_uses(each) if isinstance(each, Uses) else each, closed)


def uses_of(forms: Tree) -> Tree:
    """Forms, each as the `Uses` of its parameter; all else as it is."""
    return jax.tree.map(lambda part: Uses(part) if is_form(part) else part, forms, is_leaf=is_form)


def has_shared(network: Layer) -> bool:
    """Whether parameters are used in several places."""
    if isinstance(network, Combinator):
        return isinstance(network, Tied) or any(map(has_shared, network.children))
    return False


compiled: Callable[..., Any] = functools.partial(jax.jit, static_argnames=("network", "loss"))
"""How every signal is compiled: network and loss are static."""


@compiled
def _compiled_norms(
    params: Tree, x: Any, y: Any, weights: Any, taken: Any, *, network: Layer | None, loss: Loss
) -> Tree:
    found, _ = over_factors(
        lambda uses: uses.take(squared_norms), params, x, y, weights, taken, network, loss
    )
    return jax.tree.map(lambda each: jnp.moveaxis(each, -1, 0), found)


@compiled
def _compiled_grads(
    params: Tree, x: Any, y: Any, weights: Any, taken: Any, *, network: Layer | None, loss: Loss
) -> Tree:
    def examples_first(uses: Uses) -> jax.Array:
        return jnp.moveaxis(uses.take(each_gradient), uses.steps, 0)

    found, _ = over_factors(examples_first, params, x, y, weights, taken, network, loss, late=True)
    return found


@compiled
def _compiled_gram(
    params: Tree, x: Any, y: Any, weights: Any, taken: Any, *, network: Layer | None, loss: Loss
) -> jax.Array:
    found, _ = over_factors(
        lambda uses: uses.take(inner_products), params, x, y, weights, taken, network, loss
    )
    each = [leaf.reshape(-1, len(x), len(x)).sum(0) for leaf in jax.tree.leaves(found)]
    return functools.reduce(jnp.add, each) if each else jnp.zeros((len(x), len(x)))
