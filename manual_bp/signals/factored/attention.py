"""The visit of attention: four dense layers, each with its error and its input."""

from __future__ import annotations

import jax

from manual_bp.layer import Tree
from manual_bp.layers.multi_head_attention import MultiHeadAttention
from manual_bp.signals.factored.visit import affine, factors


@factors.register
def _(
    layer: MultiHeadAttention, dout: jax.Array, params: Tree, residuals: Tree
) -> tuple[Tree, jax.Array]:
    """dWq = Σ dQ xᵀ, dWk = Σ dK rᵀ, dWv = Σ dV rᵀ, dWo = Σ dout Oᵀ; the places of r are its own."""
    errors = layer.errors(params, residuals, dout)
    each = zip(params[:4], params[4:], errors, layer.inputs(residuals), strict=True)
    weights, biases = zip(*(affine(*one) for one in each), strict=True)
    dx, dsource = layer.passed_on(params, residuals, errors)
    dx = dx if residuals.memory is not None else dx + dsource
    return type(params)(*weights, *biases), dx.astype(residuals.x.dtype)
