"""K-FAC: the Fisher matrix of each layer as a Kronecker product, from the factors of the gradient.

With the weights of J = Σ_i w_i loss_i, of a layer whose gradient is g_i = Σ_s e_is a_isᵀ, e its
errors, a its inputs, with a 1 at their end for the bias, s its places:

    F = Σ_i w_i E[vec(g_i) vec(g_i)ᵀ]  ≈  A ⊗ G

    A = Σ_i w_i Σ_s a_is a_isᵀ / Σ_i w_i          G = Σ_i w_i E[Σ_s e_is e_isᵀ] / S

Derivation.  vec(e aᵀ) = a ⊗ e (columns of [W b] below one another), so
vec(e aᵀ) vec(e aᵀ)ᵀ = a aᵀ ⊗ e eᵀ. What K-FAC assumes is that the mean of this product is the
product of the means: that inputs and errors are independent. Of one example and place it is exact.
With S places F has all pairs s, s' in it. Errors of different places are taken as uncorrelated,
and a aᵀ and e eᵀ as alike at all places: then S pairs are left, S · (Σ_s a aᵀ/S) ⊗ (Σ_s e eᵀ/S).
The 1/S is in G, as in Grosse & Martens (2016).

Which errors  E is over labels drawn from the model, not those of the data; for softmax, sigmoid,
half squared error and Poisson F is then the generalised Gauss-Newton matrix. With the Hessian of a
loss as H = Σ_k s_k s_kᵀ (`loss_curvature.hessian_factor`), three ways to take it:

    "exact"      each column goes back by itself, E[e eᵀ] = Σ_k e_k e_kᵀ: C T walks, C the
                 prediction's size, T its places
    "sampled"    Σ_k ±s_k goes back, with random signs: one walk. E[(Σ ±s_k)(Σ ±s_k)ᵀ] = H, and so
                 the mean over keys is the exact one. Labels drawn from the model (Martens & Grosse)
                 have an error with the same mean 0 and covariance H; signs serve every convex loss.
    "empirical"  the loss's own error, of the labels given: one walk, any loss without parameters.
                 Not the Fisher: it vanishes where the examples are fitted.

Each prediction has its own weight: what goes back is √w_it times its error. Between predictions of
one sequence the products vanish in the mean, as labels and signs are independent; they are left
out of "exact", and stay in "empirical". In A an example counts with Σ_t w_it.

    layer        matrix       A                                      G
    Dense        [W b]        (n_in + 1, n_in + 1)                   (n_out, n_out)
    Conv         [W b]        (groups, K c + 1, K c + 1)             (groups, o, o)
    Embedding    Wᵀ           (V,), a diagonal: how often each       (F, F)
                              token occurs in an example

Windows of a convolution hold K places with c channels, in each group, for o features of it. Without
a bias there is no + 1. Other layers that have parameters (norms, scales, recurrent layers,
attention) have no such factors here: None stands at their place, and `kfac` takes their plain
gradient.

Cost  beside the walks S m (i² + o²) multiply-adds for each layer; the whole of each of A and G.
Ill-conditioned  A and G have rank m S at most: they are inverted with damping only.
Source  Martens & Grosse (2015), arXiv:1503.05671; Grosse & Martens (2016), arXiv:1602.01407;
        Eschenhagen et al. (2023), arXiv:2311.00636 (places of dense layers: K-FAC-expand);
        Dangel, Kunstner & Hennig (2020), arXiv:1912.10985; Kunstner et al. (2019), arXiv:1905.12558
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.gradients import begin, check_call, open_params
from manual_bp.layer import Layer, Loss, Tree, accumulation_dtype
from manual_bp.layers.conv import Conv
from manual_bp.layers.dense import Dense
from manual_bp.layers.embedding import Embedding
from manual_bp.notes_params import is_dense_chain, is_pair
from manual_bp.signals.curvature import over_columns
from manual_bp.signals.factored import factors
from manual_bp.signals.factors import Outer
from manual_bp.signals.loss_curvature import hessian_factor
from manual_bp.signals.per_example import has_shared

FISHERS = ("exact", "sampled", "empirical")


class DenseFactors(NamedTuple):
    """F ≈ A ⊗ G of [W b] of a dense layer, (n_out, n_in + 1)."""

    A: Any
    """(n_in + 1, n_in + 1), of the inputs; (n_in, n_in) without a bias."""
    G: Any
    """(n_out, n_out), of the errors."""


class ConvFactors(NamedTuple):
    """F ≈ A ⊗ G of [W b] of each group of a convolution, (o, K c + 1)."""

    A: Any
    """(groups, K c + 1, K c + 1), of the windows; (groups, K c, K c) without a bias."""
    G: Any
    """(groups, o, o), of the errors."""


class TableFactors(NamedTuple):
    """F ≈ diag(A) ⊗ G of Wᵀ of an embedding, (F, V)."""

    A: Any
    """(V,), how often each token occurs in an example, in the mean."""
    G: Any
    """(F, F), of the errors."""


KroneckerFactors = DenseFactors | ConvFactors | TableFactors


def kfac_factors(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    fisher: str = "exact",
    fisher_key: jax.Array | None = None,
    **taken: Any,
) -> Tree:
    """The Kronecker factors of each layer's Fisher matrix, F ≈ A ⊗ G.

        A = Σ_i w_i Σ_s a_is a_isᵀ / Σ_i w_i,   G = Σ_i w_i E[Σ_s e_is e_isᵀ] / S

    Args:
        params, x, y, network, **taken: as for `manual_grads`.
        loss: SoftmaxCrossEntropy() unless given; one that is convex in its prediction, or with
            fisher="empirical" any that has no parameters.
        weights: one for each prediction, (m,) or (m, T), none below 0 (else G is NaN); by default
            one over the number of predictions that count.
        fisher: "exact", C T walks back; "sampled", one walk with random signs, the same in the
            mean; "empirical", one walk with the labels given.
        fisher_key: the key of the signs, with fisher="sampled" alone.

    Returns:
        Nested like params, with DenseFactors, ConvFactors or TableFactors in place of a layer's
        params, and None for other layers that have some. What `stack` repeats has a first axis of
        steps. In at least float32.

    Raises:
        TypeError: for parameters used in several places (`tied`), a loss with parameters of its
            own or without the factors needed, a layer that mixes examples (BatchNorm) or is of an
            unknown kind; else as `manual_grads`.
        ValueError: for a setting that there isn't.

    Source: Martens & Grosse (2015), arXiv:1503.05671; Grosse & Martens (2016), arXiv:1602.01407.

    Example:
        >>> params = ((jnp.zeros((2, 1)), jnp.zeros(2)),)
        >>> x, y = jnp.array([[1.0], [3.0]]), jnp.array([0, 1])
        >>> (of_layer,) = kfac_factors(params, x, y, fisher="empirical")
        >>> print(of_layer.A)
        [[5. 2.]
         [2. 1.]]
        >>> print(of_layer.G.round(3))
        [[ 0.25 -0.25]
         [-0.25  0.25]]
    """
    if fisher not in FISHERS:
        raise ValueError(f"fisher must be one of {', '.join(map(repr, FISHERS))}, got {fisher!r}.")
    if (fisher_key is None) == (fisher == "sampled"):
        raise TypeError(
            'fisher="sampled" draws signs: pass fisher_key=jax.random.key(...).'
            if fisher_key is None
            else f'fisher="{fisher}" draws nothing: leave out fisher_key, or say fisher="sampled".'
        )
    loss = check_call(params, x, y, weights, taken, network, loss)
    if type(loss).sweep is not Loss.sweep:
        raise TypeError(
            f"{loss!r} has parameters or mixes examples: its K-FAC factors aren't known. Write the "
            "last layer as Dense(classes) in the network, with SoftmaxCrossEntropy()."
        )
    if network is not None and has_shared(network):
        raise TypeError(
            f"{network!r} has parameters that are used in several places: they have no one pair of "
            "K-FAC factors. Give each place its own, without tied; or use ggn_diagonal."
        )
    return _compiled(
        params, x, y, weights, fisher_key, taken, network=network, loss=loss, fisher=fisher
    )


@functools.singledispatch
def kronecker(layer: Layer, forms: Tree, share: jax.Array) -> Any:
    """A layer's Kronecker factors; `kronecker.register(Kind)` adds a kind of layer.

    Args:
        layer: the kind decides; this one is for kinds that have none.
        forms: what `factors` saw, nested like the layer's params; √w is in the errors.
        share: (m,), w_i / Σ w.
    """
    return None if jax.tree.leaves(forms) else forms


@kronecker.register
def _(layer: Dense, forms: Any, share: jax.Array) -> DenseFactors:
    A, G = _of_outer(forms.W, share, layer.bias)
    return DenseFactors(A[0], G[0])


@kronecker.register
def _(layer: Conv, forms: Any, share: jax.Array) -> ConvFactors:
    return ConvFactors(*_of_outer(forms.W, share, layer.bias))


@kronecker.register
def _(layer: Embedding, forms: Any, share: jax.Array) -> TableFactors:
    rows = forms.W
    errors = rows.errors[:, :, None]
    counts = jnp.zeros(rows.like.shape[0], accumulation_dtype(share))
    shares = jnp.broadcast_to(share[:, None], rows.tokens.shape)
    return TableFactors(counts.at[rows.tokens].add(shares), _second_moment(errors)[0])


def is_factors(part: Any) -> bool:
    """Whether it stands for a layer among K-FAC factors: None does where there are none."""
    return part is None or isinstance(part, KroneckerFactors)


def _of_outer(form: Outer, share: jax.Array, bias: bool) -> tuple[jax.Array, jax.Array]:
    inputs = form.inputs
    if bias:
        ones = jnp.ones((*inputs.shape[:-1], 1), inputs.dtype)
        inputs = jnp.concatenate([inputs, ones], axis=-1)
    wide = accumulation_dtype(inputs, share)
    weighted = share[:, None, None, None] * inputs
    A = jnp.einsum("msgi,msgj->gij", weighted, inputs, preferred_element_type=wide)
    return A, _second_moment(form.errors)


def _second_moment(errors: jax.Array) -> jax.Array:
    """G = Σ_i Σ_s e_is e_isᵀ / S of errors (m, S, groups, o)."""
    wide = accumulation_dtype(errors)
    total = jnp.einsum("msgo,msgp->gop", errors, errors, preferred_element_type=wide)
    return total / jnp.asarray(errors.shape[1], wide)


@functools.partial(jax.jit, static_argnames=("network", "loss", "fisher"))
def _compiled(
    params: Tree,
    x: Any,
    y: Any,
    weights: Any,
    key: Any,
    taken: Any,
    *,
    network: Layer | None,
    loss: Loss,
    fisher: str,
) -> Tree:
    opened, tree, _ = open_params(params, network, loss)
    prediction, residuals, weights = begin(opened, loss, tree, x, y, weights, taken)
    v = weights.sum(tuple(range(1, weights.ndim)))
    total = v.sum()
    share = jnp.where(total == 0, 0, v / total)
    root = jnp.sqrt(weights)

    def visit(layer: Layer, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Any, Any]:
        forms, dx = factors(layer, dout, params, residuals)
        return kronecker(layer, forms, share), dx

    def back(error: jax.Array) -> Tree:
        return opened.walk(visit, error.astype(prediction.dtype), tree, residuals)[0]

    def of_errors(error: jax.Array, w: jax.Array) -> Tree:
        weighted = jnp.sqrt(w).reshape(-1, *[1] * (error.ndim - 1)) * error
        return jax.tree.map(lambda each: each.G, back(weighted), is_leaf=_is_kept)

    if fisher == "exact":
        G = over_columns(of_errors, loss, prediction, y, weights)
        found = jax.tree.map(  # A is the same whatever error goes back
            lambda each, G: each._replace(G=G), back(prediction), G, is_leaf=_is_kept
        )
    else:
        if fisher == "sampled":
            columns = hessian_factor(loss, prediction, y)
            signs = jax.random.rademacher(key, columns.shape[:-1], columns.dtype)
            error = (signs[..., None] * columns).sum(0)
        else:
            error = loss.error(prediction, y)
        found = back(jnp.where(root[..., None] == 0, 0, root[..., None] * error))
    if not is_dense_chain(opened):
        return found
    _, structure = jax.tree.flatten(params, is_leaf=is_pair)
    return jax.tree.unflatten(structure, found)


def _is_kept(part: Any) -> bool:
    return isinstance(part, KroneckerFactors)
