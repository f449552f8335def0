"""What the gradient of one example is made of: factors, from which a signal takes what it needs.

The gradient of a parameter is a sum over examples, and what is summed has a form that is smaller
than the gradient itself. Of example i, with s its places (steps of time, places of an image):

    Outer      g_i = Σ_s e_is a_isᵀ           the notes' dZ A_prevᵀ: errors e, inputs a
    Rows       g_i[v] = Σ_{s: token_is = v} e_is     rows of a table, chosen by tokens
    Each       g_i itself                     biases, scales: it is small

From the factors follow, without forming g_i where they are smaller,

    inner products    <g_i, g_j> = Σ_s,s' (e_is · e_js') (a_is · a_js')
    their diagonal    ‖g_i‖²,  for one place  ‖e_i‖² ‖a_i‖²
    weighted sums     Σ_i c_i g_i = Σ_i,s (c_i e_is) a_isᵀ
    sums of squares   Σ_i c_i g_i²,  for one place  Σ_i (c_i e_i²) (a_i²)ᵀ    (squares by element)

Derivation.  <u vᵀ, x yᵀ> = tr(v uᵀ x yᵀ) = (u · x) (v · y), and the inner product is linear in each
argument. The Gram matrices cost S² (o + i) for each example, of S places, o errors and i inputs;
g_i itself costs S o i. What is cheaper is chosen by the shapes, when the program is traced: on two
cores 64 examples of 64 places with o = 128, i = 576 took 2.0 ms by Gram matrices and 5.9 ms by g_i,
and about the same time where both have as many products.

Ill-conditioned  where the places of an example, or the uses of a parameter, nearly cancel: the norm
of their sum is then a difference of large numbers.

A parameter that is used in several places has a gradient that is a sum, g_i = Σ_k g_i^k: `Uses`
holds the factors of each use. Its squared norm has the cross terms,

    ‖Σ_k g_i^k‖² = Σ_k,l <g_i^k, g_i^l>

and these are taken between any two forms. Uses add with +, so that `Layer.gather`, which adds the
gradients of tied parameters, and `Loss.repay` add their factors.

Shapes  see each form; m examples come first, then S places
Source  Goodfellow (2015), arXiv:1510.01799; Rochette, Manoel & Tramel (2019), arXiv:1912.06015;
        Li, Tramèr, Liang & Hashimoto (2022), arXiv:2110.05679
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Tree, accumulation_dtype
from manual_bp.layers.embedding import add_in_order

Shape = tuple[int, ...]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["errors", "inputs"], meta_fields=["like"]
)
@dataclass(frozen=True)
class Outer:
    """g_i = Σ_s e_is a_isᵀ, in each of G groups.

    Args:
        errors: (m, S, G, o).
        inputs: (m, S, G, i).
        like: the shape and dtype of the parameter: (o, i) where G is 1, or a convolution's
            (*kernel, c, G o), where inputs are windows with the axes (*kernel, c) as one.
    """

    errors: jax.Array
    inputs: jax.Array
    like: jax.ShapeDtypeStruct

    def arranged(self, grads: jax.Array) -> jax.Array:
        """(..., G, o, i) as (..., *parameter's shape)."""
        *lead, groups, o, i = grads.shape
        if len(self.like.shape) == 2 and self.like.shape == (o, i):
            return grads.reshape(*lead, o, i)
        inputs_first = jnp.moveaxis(grads, -1, len(lead))  # (..., i, G, o)
        return inputs_first.reshape(*lead, *self.like.shape[:-1], groups * o)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["errors", "tokens"], meta_fields=["like"]
)
@dataclass(frozen=True)
class Rows:
    """g_i[v] = Σ_s [token_is = v] e_is.

    Args:
        errors: (m, S, F).
        tokens: (m, S), integers.
        like: the shape and dtype of the parameter, (V, F).
    """

    errors: jax.Array
    tokens: jax.Array
    like: jax.ShapeDtypeStruct


@functools.partial(jax.tree_util.register_dataclass, data_fields=["grads"], meta_fields=["like"])
@dataclass(frozen=True)
class Each:
    """g_i itself.

    Args:
        grads: (m, *parameter's shape).
        like: the shape and dtype of the parameter.
    """

    grads: jax.Array
    like: jax.ShapeDtypeStruct


Form = Outer | Rows | Each


class Uses:
    """The factors of one parameter's gradient, a form for each of its uses; + puts them together.

    It is no pytree: to `jax.tree.map` it is a leaf, as the gradient that it stands for.

    Args:
        *forms: of the same parameter. Forms that come out of a scan have axes of steps in front.
    """

    def __init__(self, *forms: Form) -> None:
        self.forms = forms

    def __add__(self, other: Uses) -> Uses:
        return Uses(*self.forms, *other.forms)

    @property
    def like(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the parameter, in one step of a scan."""
        return self.forms[0].like

    @property
    def steps(self) -> int:
        """How many axes of steps are in front."""
        form = self.forms[0]
        if isinstance(form, Outer):
            return form.errors.ndim - 4
        if isinstance(form, Rows):
            return form.errors.ndim - 3
        return form.grads.ndim - 1 - len(form.like.shape)

    def take(
        self, signal: Callable[..., Tree], *shared: Any, of_steps: tuple[Any, ...] = ()
    ) -> Any:
        """signal(forms, *shared, *of_steps), for each step of a scan: axes of steps stay in front.

        Args:
            signal: of the forms of one step.
            shared: what all steps have in common.
            of_steps: what each step has of its own, with axes of steps in front as the forms.
        """
        in_axes = (0, *[None] * len(shared), *[0] * len(of_steps))
        for _ in range(self.steps):
            signal = jax.vmap(signal, in_axes=in_axes)
        return signal(self.forms, *shared, *of_steps)


def squared_norms(forms: tuple[Form, ...]) -> jax.Array:
    """‖Σ_k g_i^k‖², (m,)."""
    own = [_inner(form, form) for form in forms]
    crossed = [2 * _inner(p, q) for n, p in enumerate(forms) for q in forms[:n]]
    total = _sum(own + crossed)
    # Where uses, or places, cancel each other, rounding may leave less than 0: no square.
    return total if len(forms) == 1 and _has_one_place(forms[0]) else jnp.maximum(total, 0)


def inner_products(forms: tuple[Form, ...]) -> jax.Array:
    """<g_i, g_j>, (m, m)."""
    return _sum([_gram(p, q) for p in forms for q in forms])


def products_with(forms: tuple[Form, ...], direction: jax.Array) -> jax.Array:
    """<g_i, v>, (m,), of a direction v in the parameter's shape."""
    return _sum([_along(form, direction) for form in forms])


def each_gradient(forms: tuple[Form, ...]) -> jax.Array:
    """g_i, (m, *parameter's shape)."""
    return _sum([_each(form) for form in forms]).astype(forms[0].like.dtype)


def weighted_sum(forms: tuple[Form, ...], c: jax.Array) -> jax.Array:
    """Σ_i c_i g_i, in the parameter's shape and dtype."""
    return wide_weighted_sum(forms, c).astype(forms[0].like.dtype)


def wide_weighted_sum(forms: tuple[Form, ...], c: jax.Array) -> jax.Array:
    """The same in at least float32, for what is subtracted from it."""
    return _sum([_weighted(form, c) for form in forms])


def sum_of_squares(forms: tuple[Form, ...], c: jax.Array) -> jax.Array:
    """Σ_i c_i g_i², element by element, in the parameter's shape."""
    (form, *others) = forms
    if not others and isinstance(form, Each):
        return _weighted(Each(_wide(form.grads) ** 2, form.like), c)
    if not others and isinstance(form, Outer) and _has_one_place(form):
        squared = Outer(_wide(form.errors) ** 2, _wide(form.inputs) ** 2, form.like)
        return _weighted(squared, c)

    def add(total: jax.Array, at: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
        forms, c = at
        g = _sum([_each(form) for form in jax.tree.map(lambda leaf: leaf[None], forms)])[0]
        return total + c * g**2, None

    # one example at a time: all their gradients at once are m times the parameters
    start = jnp.zeros(form.like.shape, accumulation_dtype(*jax.tree.leaves(forms), c))
    total, _ = jax.lax.scan(add, start, (forms, c))
    return total


def _has_one_place(form: Form) -> bool:
    return isinstance(form, Each) or form.errors.shape[1] == 1


def _inner(p: Form, q: Form) -> jax.Array:
    """<g_i^p, g_i^q>, (m,)."""
    if isinstance(p, Rows) and isinstance(q, Outer):
        p, q = q, p
    if isinstance(p, Outer) and isinstance(q, Outer):
        (_, s, _, o), z, i = p.errors.shape, q.errors.shape[1], p.inputs.shape[3]
        if _has_one_place(p) and _has_one_place(q):
            errors = (_wide(p.errors) * q.errors).sum(-1)
            inputs = (_wide(p.inputs) * q.inputs).sum(-1)
            # of an example of weight 0 the inputs may be so large that their square is infinite
            return jnp.where(errors == 0, 0, errors * inputs).sum((1, 2))
        if s * z * (o + i) < (s if p is q else s + z) * o * i:
            # With one group plain products: its axis between them took twice the time.
            grouped = p.errors.shape[2] > 1
            formula = "msgk,mzgk->mgsz" if grouped else "msk,mzk->msz"
            rows = (p.errors, q.errors, p.inputs, q.inputs)
            e, f, a, b = rows if grouped else (each[:, :, 0] for each in rows)
            alike = _einsum(formula, e, f) * _einsum(formula, a, b)
            return alike.sum(tuple(range(1, alike.ndim)))
    elif isinstance(p, Rows) and isinstance(q, Rows):
        alike = p.tokens[:, :, None] == q.tokens[:, None]
        return jnp.where(alike, _einsum("msf,mzf->msz", p.errors, q.errors), 0).sum((1, 2))
    elif isinstance(p, Outer) and isinstance(q, Rows):
        of_rows = jnp.take_along_axis(_wide(p.errors[:, :, 0]), q.tokens[:, None], axis=2)
        return (of_rows * _einsum("msi,mzi->msz", p.inputs[:, :, 0], q.errors)).sum((1, 2))
    grads = _each(p)
    return (grads * (grads if p is q else _each(q))).sum(tuple(range(1, grads.ndim)))


def _gram(p: Form, q: Form) -> jax.Array:
    """<g_i^p, g_j^q>, (m, m)."""
    if isinstance(p, Rows) and isinstance(q, Outer):
        return _gram(q, p).T
    if isinstance(p, Outer) and isinstance(q, Outer):
        (m, s, _, o), z, i = p.errors.shape, q.errors.shape[1], p.inputs.shape[3]
        if m * s * z * (o + i) < (m + (s if p is q else s + z)) * o * i:
            errors = _einsum("msgo,nzgo->mngsz", p.errors, q.errors)
            return (errors * _einsum("msgi,nzgi->mngsz", p.inputs, q.inputs)).sum((2, 3, 4))
    elif isinstance(p, Rows) and isinstance(q, Rows):
        alike = p.tokens[:, None, :, None] == q.tokens[None, :, None, :]
        return jnp.where(alike, _einsum("msf,nzf->mnsz", p.errors, q.errors), 0).sum((2, 3))
    elif isinstance(p, Outer) and isinstance(q, Rows):
        of_rows = jnp.take(_wide(p.errors[:, :, 0]), q.tokens, axis=2)  # (m, s, n, z)
        return (of_rows * _einsum("msi,nzi->msnz", p.inputs[:, :, 0], q.errors)).sum((1, 3))
    left = _each(p)
    right = left if p is q else _each(q)
    return _einsum("mk,nk->mn", left.reshape(len(left), -1), right.reshape(len(right), -1))


def _along(form: Form, direction: jax.Array) -> jax.Array:
    """<g_i, v>, (m,): Σ_s e_is · V a_is."""
    if isinstance(form, Rows):
        return (_wide(form.errors) * jnp.take(direction, form.tokens, axis=0)).sum((1, 2))
    if isinstance(form, Outer) and direction.ndim == 2 and form.errors.shape[2] == 1:
        of_inputs = _einsum("oi,msgi->msgo", direction, form.inputs)
        return (of_inputs * form.errors).sum((1, 2, 3))
    grads = _each(form)
    return (grads * direction).sum(tuple(range(1, grads.ndim)))


def _each(form: Form) -> jax.Array:
    """g_i, (m, *parameter's shape), in at least float32."""
    if isinstance(form, Outer):
        return form.arranged(_einsum("msgo,msgi->mgoi", form.errors, form.inputs))
    if isinstance(form, Rows):
        zeros = jnp.zeros((len(form.errors), *form.like.shape), accumulation_dtype(form.errors))
        return jax.vmap(add_in_order)(zeros, form.tokens, _wide(form.errors))
    return _wide(form.grads)


def _weighted(form: Form, c: jax.Array) -> jax.Array:
    """Σ_i c_i g_i, in at least float32."""
    if isinstance(form, Each):
        return _times(form.grads, c).sum(0)
    errors = _times(form.errors, c)
    if isinstance(form, Outer) and form.errors.shape[2] == 1:  # one matrix product
        of_places = [each.reshape(-1, each.shape[-1]) for each in (errors, form.inputs)]
        return form.arranged(_einsum("no,ni->oi", *of_places)[None])
    if isinstance(form, Outer):
        return form.arranged(_einsum("msgo,msgi->goi", errors, form.inputs))
    zeros = jnp.zeros(form.like.shape, errors.dtype)
    return add_in_order(zeros, form.tokens.reshape(-1), errors.reshape(-1, errors.shape[-1]))


def _times(values: jax.Array, c: jax.Array) -> jax.Array:
    """c_i v_i, exactly 0 where c_i is 0, in at least float32."""
    by_example = c.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(by_example == 0, 0, by_example * _wide(values))


def _einsum(formula: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(formula, *arrays, preferred_element_type=accumulation_dtype(*arrays))


def _wide(values: jax.Array) -> jax.Array:
    return values.astype(accumulation_dtype(values))


def _sum(terms: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms)
