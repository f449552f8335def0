"""Parallel: branches that share an input, and what becomes of their outputs.

    out_i = branch_i(x),   out = concatenate, sum or product of out_1 ... out_n

Backward: each branch gets its share of the error, and since x is used n times, its gradients add:

    concatenate    dout_i = the part of dout at out_i's place on the last axis
    sum            dout_i = dout
    product        dout_i = dout ⊙ Π_{j≠i} out_j
    always         (dparams_i, dx_i) = backward_i(dout_i),   dx = Σ_i dx_i

Derivation.  ∂J/∂x = Σ_i ∂J/∂out_i · ∂out_i/∂x, and ∂J/∂out_i is dout times the derivative of the
combination with respect to out_i alone. The product over j≠i is taken from products of those before
and those after i, not by dividing by out_i, which may be 0.

Shapes  out_i: (..., n_i) with equal leading axes; equal shapes for sum and product
Source  Szegedy et al. (2015), arXiv:1409.4842 (concatenate); Dauphin et al. (2017),
        arXiv:1612.08083 (product: gated linear units)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from manual_bp.layer import Combinator, Layer, Static, Tree, Visit, output_shape, within
from manual_bp.sharding import alike, axes_of, divided, undivided

Combine = Literal["concatenate", "sum", "product"]


class Residuals(NamedTuple):
    """branches: each one's own; outs: for a product, all outputs; sizes: n_i, for concatenate;
    axes: the mesh axes that divide each output.
    """

    branches: tuple[Tree, ...]
    outs: tuple[jax.Array, ...]
    sizes: Static
    axes: Static


@dataclass(frozen=True)
class Parallel(Combinator):
    """Branches with a common input; write `parallel(first, second, combine="sum")`."""

    branches: tuple[Layer, ...]
    combine: Combine = "concatenate"

    @property
    def children(self) -> tuple[Layer, ...]:
        return self.branches

    def rebuild(self, children: tuple[Layer, ...]) -> Parallel:
        return Parallel(children, self.combine)

    def init(self, key: jax.Array, x: Any) -> Tree:
        params, shapes = [], []
        for index, branch in enumerate(self.branches):
            with within(index + 1, branch):
                params.append(branch.init(jax.random.fold_in(key, index), x))
                shapes.append(output_shape(branch, params[-1], x))
        self._check_shapes(shapes)
        return tuple(params)

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        self.check(params, taken)
        outs, kept = [], []
        for index, branch in enumerate(self.branches):
            with within(index + 1, branch):
                out, residuals = branch.forward(params[index], x, **self.hand(taken, index))
            outs.append(out)
            kept.append(residuals)
        self._check_shapes(outs)
        sizes = Static(tuple(out.shape[-1] for out in outs))
        axes = Static(tuple(map(axes_of, outs)))
        outs = alike(outs)
        if self.combine == "concatenate":
            outs = [undivided(out, -1) for out in outs]
            return jnp.concatenate(outs, axis=-1), Residuals(tuple(kept), (), sizes, axes)
        if self.combine == "sum":
            return _total(outs), Residuals(tuple(kept), (), sizes, axes)
        return _product(outs), Residuals(tuple(kept), tuple(outs), sizes, axes)

    def walk(
        self, visit: Visit, dout: jax.Array, params: Tree, residuals: Residuals, *others: Tree
    ) -> tuple[Tree, jax.Array]:
        seen, dxs = [], []
        shares = zip(self._shares(residuals, dout), residuals.axes.value, strict=True)
        for index, (branch, (share, axes)) in enumerate(zip(self.branches, shares, strict=True)):
            with within(index + 1, branch):
                each, dx = branch.walk(
                    visit,
                    divided(share, *axes),
                    params[index],
                    residuals.branches[index],
                    *(tree[index] for tree in others),
                )
            seen.append(each)
            dxs.append(dx)
        dx = dxs[0] if dxs[0].dtype == jax.dtypes.float0 else _total(dxs)  # of integers: none
        return tuple(seen), dx

    def observe(self, residuals: Residuals) -> Tree:
        return super().observe(residuals.branches)

    def _shares(self, residuals: Residuals, dout: jax.Array) -> list[jax.Array]:
        """dout_i, the error of each branch's output."""
        sizes = residuals.sizes.value
        if self.combine == "sum":
            return [dout] * len(sizes)
        if self.combine == "concatenate":
            dout = undivided(dout, -1)
            starts = [sum(sizes[:index]) for index in range(len(sizes))]
            return [dout[..., at : at + n] for at, n in zip(starts, sizes, strict=True)]
        outs = residuals.outs
        return [
            _product([dout, *outs[:index], *outs[index + 1 :]]).astype(out.dtype)
            for index, out in enumerate(outs)
        ]

    def _check_shapes(self, outs: Any) -> None:
        shapes = [tuple(out.shape) for out in outs]
        alike = [s[:-1] for s in shapes] if self.combine == "concatenate" else shapes
        if any(shape != alike[0] for shape in alike):
            expected = "equal leading axes" if self.combine == "concatenate" else "equal shapes"
            raise ValueError(
                f"{self!r}: outputs have shapes {', '.join(map(str, shapes))}, expected "
                f"{expected} for combine={self.combine!r}; they are not broadcast."
            )

    def __repr__(self) -> str:
        inner = ", ".join(map(repr, self.branches))
        how = "" if self.combine == "concatenate" else f", combine={self.combine!r}"
        return f"parallel({inner}{how})"


def _total(terms: Any) -> jax.Array:
    first, *rest = terms
    for term in rest:
        first = first + term
    return first


def _product(factors: Any) -> jax.Array:
    first, *rest = factors
    for factor in rest:
        first = first * factor
    return first


def parallel(*branches: Layer, combine: Combine = "concatenate") -> Parallel:
    """Layers with a common input, their outputs concatenated, added or multiplied.

        dx = Σ_i dx_i,   with dout_i = a part of dout, dout, or dout ⊙ Π_{j≠i} out_j

    Args:
        *branches: at least one layer.
        combine: "concatenate" on the last axis, "sum" or "product".

    Returns:
        A layer whose params are a tuple with an entry for each branch.

    Raises:
        TypeError: when something isn't a layer, or combine is none of the three.
        ValueError: at init and forward, when the outputs' shapes don't fit.

    Source: Szegedy et al. (2015), arXiv:1409.4842; Dauphin et al. (2017), arXiv:1612.08083.

    Example:
        >>> gated = parallel(Dense(4), Dense(4, sigmoid), combine="product")
        >>> x = jnp.ones((2, 3))
        >>> gated.forward(gated.init(jax.random.key(0), x), x)[0].shape
        (2, 4)
    """
    if not branches:
        raise TypeError("parallel() needs at least one layer, got none.")
    for index, branch in enumerate(branches):
        if not isinstance(branch, Layer):
            raise TypeError(f"parallel: argument {index + 1} must be a layer, got {branch!r}.")
    if combine not in get_args(Combine):
        raise TypeError(
            f"parallel: combine must be one of {', '.join(get_args(Combine))}; got {combine!r}."
        )
    return Parallel(branches, combine)
