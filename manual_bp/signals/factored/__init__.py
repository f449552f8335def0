"""The visit that finds the factors of each example's gradient, for every kind of layer.

    factors(layer, dout, params, residuals) -> (a form for each parameter, nested like them, dx)

Each kind says once what its gradient is summed from:

    Dense            dW[l] = Σ dZ A_prevᵀ, db = Σ dZ       Outer(dZ, A_prev), Each(Σ over s of dZ)
    Conv             dW = Σ over places of window doutᵀ    Outer(dout, windows of x), Each
    Embedding        rows of dW are sums of dout           Rows(dout, tokens)
    recurrent        dW = Σ_t dz_t x_tᵀ, dU = Σ_t dz_t h_{t-1}ᵀ
                                                           Outer(dz, x), Outer(dz, h before), Each
    attention        dWq = Σ dQ xᵀ, dWk = Σ dK rᵀ, dWv = Σ dV rᵀ, dWo = Σ dout Oᵀ
                                                           four Outer, four Each
    GatedMLP         dW_gate = Σ dZ xᵀ, dW_up = Σ dU xᵀ, dW_down = Σ dout Hᵀ
    norms, scales    their own backward, one example at a time: what they have is small
    cross-entropy    of a loss that holds the last layer: dW = Σ dz hᵀ, Outer(dz, h)

A layer that mixes examples, BatchNorm, has no such form: the error of one example depends on all
others through the statistics, and so `the gradient of example i` is not defined. It is an error,
and so is a layer of a kind that nobody has said a visit for.

Source  Goodfellow (2015), arXiv:1510.01799; Rochette, Manoel & Tramel (2019), arXiv:1912.06015
"""

from manual_bp.signals.factored import attention, feedforward, recurrent  # they register visits
from manual_bp.signals.factored.losses import loss_factors
from manual_bp.signals.factored.visit import affine, factors, is_form, like

__all__ = [
    "affine",
    "attention",
    "factors",
    "feedforward",
    "is_form",
    "like",
    "loss_factors",
    "recurrent",
]
