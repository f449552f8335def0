"""The notes' formulas, literally: features x examples, one small function for each.

    symbol   meaning                                          shape
    m        number of examples                               scalar
    A[0]     the input X                                      (n_0, m)
    W[l]     weights of layer l                               (n_l, n_{l-1})
    b[l]     bias of layer l                                  (n_l, 1)
    Z[l]     pre-activation                                   (n_l, m)
    A[l]     post-activation, g[l](Z[l])                      (n_l, m)
    Y        ground truth                                     (n_L, m)

    forward           Z[l] = W[l] A[l-1] + b[l],   A[l] = g[l](Z[l])
    output layer      dZ[L] = A[L] - Y
    any hidden layer  dZ[l] = W[l+1]ᵀ dZ[l+1] * g'[l](Z[l])          (* is element-wise)
    every layer       dW[l] = (1/m) dZ[l] A[l-1]ᵀ
                      db[l] = (1/m) Σ over examples of dZ[l]
    update            W[l] <- W[l] - rate dW[l],   b[l] <- b[l] - rate db[l]

W, b, Z, A, g, g_prime and the gradients are dicts from the number of a layer, 1 ... L, so that the
code reads as the formulas do. In these formulas dZ[l] has no 1/m: column i is the error of example
i alone. dW and db are the gradients of the cost J = (1/m) Σ over examples of the loss.

This is the first derivation. `manual_bp.gradients`, with examples first, is the second, and
autodiff judges both.

Source  Rumelhart, Hinton & Williams (1986), Learning representations by back-propagating errors

Example: one step on a network of two layers.
    >>> sigma = lambda z: 1 / (1 + jnp.exp(-z))
    >>> g = {1: jnp.tanh, 2: sigma}
    >>> g_prime = {1: lambda z: 1 - jnp.tanh(z) ** 2}
    >>> W = {1: jnp.array([[1.0, -1.0]]), 2: jnp.array([[2.0]])}
    >>> b = {1: jnp.zeros((1, 1)), 2: jnp.zeros((1, 1))}
    >>> X, Y = jnp.array([[0.5, 1.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0]])
    >>> Z, A = forward_pass(W, b, X, g)
    >>> dZ, dW, db = backward_pass(W, Z, A, Y, g_prime)
    >>> dW[1].shape, db[1].shape
    ((1, 2), (1, 1))
    >>> W = {l: gradient_descent_update(W[l], dW[l], rate=0.1) for l in W}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

Array = jax.Array | np.ndarray
ByLayer = Mapping[int, Array]
Functions = Mapping[int, Callable[..., Array]]


def pre_activation(W: Array, A_prev: Array, b: Array) -> Array:
    """Z[l] = W[l] A[l-1] + b[l].

    Args:
        W: (n_l, n_{l-1}).
        A_prev: (n_{l-1}, m).
        b: (n_l, 1), the same for every example.

    Returns:
        Z: (n_l, m).

    Raises:
        ValueError: when W and A_prev don't fit, or b isn't a column of n_l.
    """
    if W.ndim != 2 or A_prev.ndim != 2 or W.shape[1] != A_prev.shape[0]:
        advice = ""
        if W.ndim == A_prev.ndim == 2 and W.shape[1] == A_prev.shape[1]:
            advice = " A_prev.T would fit: it is features x examples."
        raise ValueError(
            f"W has shape {W.shape} and A_prev {A_prev.shape}, expected (n_l, n_{{l-1}}) and "
            f"(n_{{l-1}}, m).{advice}"
        )
    if b.shape != (W.shape[0], 1):
        advice = " Use b[:, None]." if b.shape == (W.shape[0],) else ""
        raise ValueError(f"b has shape {b.shape}, expected {(W.shape[0], 1)}.{advice}")
    return W @ A_prev + b


def forward_pass(
    W: ByLayer, b: ByLayer, X: Array, g: Functions
) -> tuple[dict[int, Array], dict[int, Array]]:
    """Z[l] = W[l] A[l-1] + b[l], A[l] = g[l](Z[l]), for l = 1 ... L, from A[0] = X.

    Args:
        W: l -> (n_l, n_{l-1}).
        b: l -> (n_l, 1).
        X: (n_0, m).
        g: l -> activation of layer l; the last one is the output activation.

    Returns:
        Z: l -> (n_l, m), and A: l -> (n_l, m) with A[0] = X.
    """
    Z, A = {}, {0: X}
    for l in range(1, len(W) + 1):
        Z[l] = pre_activation(W[l], A[l - 1], b[l])
        A[l] = g[l](Z[l])
    return Z, A


def output_error(A_L: Array, Y: Array) -> Array:
    """dZ[L] = A[L] - Y, for each canonical pair of output activation and loss.

    Softmax with cross-entropy (labels that sum to one), sigmoid with binary cross-entropy, identity
    with half squared error, exp with Poisson: ∂loss/∂Z[L] is A[L] - Y for all of them.

    Args:
        A_L: (n_L, m).
        Y: (n_L, m).

    Returns:
        dZ[L]: (n_L, m).

    Raises:
        ValueError: when the shapes differ.
    """
    if A_L.shape != Y.shape:
        advice = " Y.T would fit: it is features x examples." if A_L.shape == Y.shape[::-1] else ""
        raise ValueError(f"Y has shape {Y.shape}, expected {A_L.shape} like A[L].{advice}")
    return A_L - Y


def hidden_error(
    W_next: Array,
    dZ_next: Array,
    Z: Array,
    g_prime: Callable[..., Array],
) -> Array:
    """dZ[l] = W[l+1]ᵀ dZ[l+1] * g'[l](Z[l]), the product * element-wise.

    Args:
        W_next: W[l+1], (n_{l+1}, n_l).
        dZ_next: dZ[l+1], (n_{l+1}, m).
        Z: Z[l], (n_l, m).
        g_prime: g'[l].

    Returns:
        dZ[l]: (n_l, m).
    """
    return W_next.T @ dZ_next * g_prime(Z)


def weight_gradient(dZ: Array, A_prev: Array) -> Array:
    """dW[l] = (1/m) dZ[l] A[l-1]ᵀ.

    Args:
        dZ: dZ[l], (n_l, m).
        A_prev: A[l-1], (n_{l-1}, m).

    Returns:
        dW[l]: (n_l, n_{l-1}).
    """
    m = dZ.shape[1]
    return 1 / m * (dZ @ A_prev.T)


def bias_gradient(dZ: Array) -> Array:
    """db[l] = (1/m) Σ over examples of dZ[l].

    Args:
        dZ: dZ[l], (n_l, m).

    Returns:
        db[l]: (n_l, 1).
    """
    m = dZ.shape[1]
    return 1 / m * dZ.sum(axis=1, keepdims=True)


def backward_pass(
    W: ByLayer, Z: ByLayer, A: ByLayer, Y: Array, g_prime: Functions
) -> tuple[dict[int, Array], dict[int, Array], dict[int, Array]]:
    """dZ, dW and db of every layer, from the last one down.

    Args:
        W: l -> (n_l, n_{l-1}).
        Z, A: as `forward_pass` returns them.
        Y: (n_L, m).
        g_prime: l -> g'[l], for l = 1 ... L-1; the last layer needs none.

    Returns:
        dZ: l -> (n_l, m), dW: l -> (n_l, n_{l-1}), db: l -> (n_l, 1).
    """
    L = len(W)
    dZ = {L: output_error(A[L], Y)}
    for l in range(L - 1, 0, -1):
        dZ[l] = hidden_error(W[l + 1], dZ[l + 1], Z[l], g_prime[l])
    dW = {l: weight_gradient(dZ[l], A[l - 1]) for l in range(1, L + 1)}
    db = {l: bias_gradient(dZ[l]) for l in range(1, L + 1)}
    return dZ, dW, db


def gradient_descent_update(value: Array, gradient: Array, rate: float) -> Array:
    """W[l] <- W[l] - rate dW[l], and likewise b[l].

    Args:
        value: W[l] or b[l].
        gradient: dW[l] or db[l], of the same shape.
        rate: the learning rate.

    Returns:
        The new value, of the same shape.
    """
    return value - rate * gradient
