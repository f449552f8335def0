"""How the gradients of examples scatter: moments, noise scale, cosine similarities.

With ḡ = 1/m Σ_i g_i, and everything from one sweep:

    second moment     1/m Σ_i g_i²                            element by element
    variance          1/(m-1) Σ_i (g_i - ḡ)² = m/(m-1) (1/m Σ_i g_i² - ḡ²)
    tr Σ              Σ over all elements of the variance = m/(m-1) (1/m Σ_i ‖g_i‖² - ‖ḡ‖²)
    ‖G‖²              (m ‖ḡ‖² - 1/m Σ_i ‖g_i‖²) / (m-1)
    noise scale       B = tr Σ / ‖G‖²
    similarity        <g_i, g_j> / (‖g_i‖ ‖g_j‖),   and of each g_i to ḡ

Examples all of whose predictions have weight 0, or are ignored, aren't counted: m is how many are.
Where all examples have equally many predictions that count ḡ is the gradient of the batch.

Derivation.  For a dense layer g_i = e_i a_iᵀ has the squares (e_i²)(a_i²)ᵀ, so that their sum is
one contraction, as the gradient is. With g_i independent, of mean G and covariance Σ,

    E‖g_i‖² = ‖G‖² + tr Σ,   E‖ḡ‖² = ‖G‖² + tr Σ / m

and solved for ‖G‖² and tr Σ these are the estimates above, free of bias. B is the batch size at
which the noise of ḡ is as long as G: below it doubling the batch nearly halves the steps needed,
above it hardly any are saved.

Ill-conditioned  where ḡ is much longer than the scatter: then the variance is a difference of
near-equal numbers, and what rounding makes negative of it is given as 0; tr Σ and ‖G‖² are given as
they come. ‖G‖², and B with it, may be negative where the batch is too small for the noise. Average
tr Σ and ‖G‖² over steps, each by itself, before you divide. With fewer than two examples that count
they are NaN. A cosine may round to a little more than 1; squares of gradients below 1e-19 are 0 in
float32, and their cosines too.

Source  McCandlish, Kaplan, Amodei et al. (2018), arXiv:1812.06162, appendix A
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.gradients import Sweep, check_call
from manual_bp.layer import Layer, Loss, Static, Tree, accumulation_dtype
from manual_bp.signals.factors import (
    Uses,
    products_with,
    squared_norms,
    sum_of_squares,
    wide_weighted_sum,
)
from manual_bp.signals.per_example import compiled, gradient_gram, over_factors, total_of_examples


class Moments(NamedTuple):
    """Each nested like params, with the shapes of params."""

    mean: Tree
    """ḡ = 1/m Σ g_i, in the dtypes of params."""
    second_moment: Tree
    """1/m Σ g_i², element by element, in at least float32."""
    variance: Tree
    """1/(m-1) Σ (g_i - ḡ)², element by element, in at least float32."""


class GradientNoise(NamedTuple):
    """How long the gradients of examples are, and how they scatter around their mean."""

    noise_scale: jax.Array
    """B = tr Σ / ‖G‖², in examples."""
    trace: jax.Array
    """tr Σ, the scatter of one example's gradient, free of bias."""
    squared_norm: jax.Array
    """‖G‖², of the gradient without noise, free of bias; it may be negative."""
    norms: jax.Array
    """(m,), ‖g_i‖."""
    similarities: jax.Array
    """(m,), the cosine of the angle between g_i and ḡ; 0 where one of them is 0."""


def gradient_moments(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> Moments:
    """Mean, second moment and variance of the gradient over examples, element by element.

        1/m Σ g_i,   1/m Σ g_i²,   1/(m-1) Σ (g_i - ḡ)²

    Args, Raises: as for `per_example_grads`; ValueError for fewer than two examples, too.

    Returns:
        Moments(mean, second_moment, variance), each nested like params.

    Source: McCandlish et al. (2018), arXiv:1812.06162.

    Example:
        >>> params = ((jnp.zeros((2, 1)), jnp.zeros(2)),)
        >>> moments = gradient_moments(params, jnp.array([[1.0], [3.0]]), jnp.array([0, 1]))
        >>> mean, second, variance = (each[0][0] for each in moments)
        >>> print(mean[0], second[0], variance[0])
        [0.5] [1.25] [2.]
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    _check_several(x)
    return _compiled_moments(params, x, y, weights, taken, network=network, loss=loss)


def gradient_noise(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> GradientNoise:
    """The gradient noise scale, with the norms and similarities that it comes from.

        B = tr Σ / ‖G‖²

    Args, Raises: as for `gradient_moments`.

    Returns:
        GradientNoise(noise_scale, trace, squared_norm, norms, similarities).

    Source: McCandlish et al. (2018), arXiv:1812.06162, appendix A.1.

    Example:
        >>> params = ((jnp.zeros((2, 1)), jnp.zeros(2)),)
        >>> noise = gradient_noise(params, jnp.array([[1.0], [1.0], [1.0]]), jnp.array([0, 0, 1]))
        >>> print(noise.trace, noise.squared_norm, noise.similarities)
        1.3333334 -0.3333333 [ 1.  1. -1.]
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    _check_several(x)
    return _compiled_noise(params, x, y, weights, taken, network=network, loss=loss)


def cosine_similarities(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> jax.Array:
    """Cosines of the angles between all pairs of the examples' gradients.

        <g_i, g_j> / (‖g_i‖ ‖g_j‖);   0 where one of them is 0

    Args, Raises: as for `per_example_grads`.

    Returns:
        (m, m), symmetric.

    Source: Fort, Nowak, Jastrzębski & Narayanan (2019), arXiv:1901.09491.

    Example:
        >>> params = ((jnp.zeros((2, 1)), jnp.zeros(2)),)
        >>> cosines = cosine_similarities(params, jnp.ones((2, 1)), jnp.array([0, 1]))
        >>> print(cosines.round(3))
        [[ 1. -1.]
         [-1.  1.]]
    """
    gram = gradient_gram(params, x, y, network=network, loss=loss, weights=weights, **taken)
    return cosines_of(gram)


@jax.jit
def cosines_of(gram: jax.Array) -> jax.Array:
    """K_ij / √(K_ii K_jj), 0 where K_ii or K_jj is."""
    each = jnp.arange(len(gram))
    squared = gram.at[each, each].get(mode="promise_in_bounds", wrap_negative_indices=False)
    norms = jnp.sqrt(squared)
    return _over(gram, norms[:, None] * norms)


@compiled
def _compiled_moments(
    params: Tree, x: Any, y: Any, weights: Any, taken: Any, *, network: Layer | None, loss: Loss
) -> Moments:
    def of_uses(uses: Uses) -> _Sums:
        ones = jnp.ones(len(x), accumulation_dtype(*jax.tree.leaves(uses.forms)))
        squared = uses.take(sum_of_squares, ones)
        return _Sums(uses.take(wide_weighted_sum, ones), squared, Static(uses.like.dtype))

    found, step = over_factors(of_uses, params, x, y, weights, taken, network, loss)
    m = _examples_that_count(step)

    def of_sums(sums: _Sums) -> Moments:
        mean, second = sums.grads / m, sums.squares / m
        # bias of 1/m Σ (g_i - ḡ)²: ḡ is their own mean
        variance = jnp.maximum(second - jnp.square(mean), 0) * m / (m - 1)
        return Moments(mean.astype(sums.dtype.value), second, variance)

    of_each = jax.tree.map(of_sums, found, is_leaf=lambda part: isinstance(part, _Sums))
    return Moments(
        *(
            jax.tree.map(
                lambda each, name=name: each._asdict()[name],
                of_each,
                is_leaf=lambda part: isinstance(part, Moments),
            )
            for name in Moments._fields
        )
    )


@compiled
def _compiled_noise(
    params: Tree, x: Any, y: Any, weights: Any, taken: Any, *, network: Layer | None, loss: Loss
) -> GradientNoise:
    found, step = over_factors(
        lambda uses: uses, params, x, y, weights, taken, network, loss, late=True
    )
    m = _examples_that_count(step)
    squared, along, of_mean = [], [], jnp.zeros((), m.dtype)
    for uses in jax.tree.leaves(found):
        ones = jnp.ones(len(x), accumulation_dtype(*jax.tree.leaves(uses.forms)))
        mean = uses.take(wide_weighted_sum, ones) / m
        squared.append(jnp.moveaxis(uses.take(squared_norms), -1, 0))
        along.append(jnp.moveaxis(uses.take(products_with, of_steps=(mean,)), -1, 0))
        of_mean = of_mean + jnp.square(mean).sum()
    of_examples = total_of_examples(squared, len(x))
    mean_square = of_examples.sum() / m
    trace = (mean_square - of_mean) * m / (m - 1)
    squared_norm = (m * of_mean - mean_square) / (m - 1)
    norms = jnp.sqrt(of_examples)
    similarities = _over(total_of_examples(along, len(x)), norms * jnp.sqrt(of_mean))
    return GradientNoise(trace / squared_norm, trace, squared_norm, norms, similarities)


class _Sums(NamedTuple):
    """Σ g_i and Σ g_i², in at least float32, and the parameter's dtype."""

    grads: jax.Array
    squares: jax.Array
    dtype: Static


def _examples_that_count(step: Sweep) -> jax.Array:
    """How many have a prediction of weight other than 0: the gradient of the others is no draw."""
    weights = step.weights
    return (weights != 0).any(tuple(range(1, weights.ndim))).sum(dtype=weights.dtype)


def _over(products: jax.Array, lengths: jax.Array) -> jax.Array:
    """products / lengths, 0 where a length is 0."""
    return jnp.where(lengths == 0, 0, products / lengths)


def _check_several(x: Any) -> None:
    if len(x) < 2:
        raise ValueError(
            f"x holds {len(x)} example{'s' * (len(x) != 1)}: how gradients scatter needs at least "
            "two. Give a batch, examples first."
        )
