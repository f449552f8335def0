"""The notes' literal formulas as a judge: features x examples, through `manual_bp.formulas`."""

from __future__ import annotations

from typing import Any

import numpy as np

import manual_bp as mbp
from manual_bp import formulas
from manual_bp.layer import Layer, Loss
from manual_bp.notes_params import is_dense_chain
from verify import specs
from verify.networks import Problem


def applies(network: Layer, loss: Loss, problem: Problem) -> bool:
    """Whether the notes cover this problem.

    They cover dense layers one after the other, on (m, n_0), with the output activation and loss of
    a canonical pair and the mean over examples.
    """
    return _targets(network, loss, problem) is not None


def intermediates(network: Layer, loss: Loss, problem: Problem) -> dict[str, Any]:
    """Every intermediate by the literal formulas, in the layout and names of the engine.

    The notes' dZ and dA are errors of single examples; divided by m they are the engine's.
    """
    Y = _targets(network, loss, problem)
    if Y is None:
        raise ValueError(f"the notes don't cover {network!r} with {loss!r}")
    layers: Any = network.layers  # pyright: ignore[reportAttributeAccessIssue]
    L = len(layers)
    m = problem.x.shape[0]
    W = {l: problem.params[l - 1].W for l in range(1, L + 1)}
    b = {l: problem.params[l - 1].b[:, None] for l in range(1, L + 1)}
    g: dict[int, Any] = {l: layers[l - 1].activation.value for l in range(1, L)}
    g_prime = {l: layers[l - 1].activation.derivative for l in range(1, L)}
    activate = specs.of_loss(loss).activation
    g[L] = lambda z: activate(z.T).T  # softmax is over classes, the notes' rows
    Z, A = formulas.forward_pass(W, b, problem.x.T, g)
    dZ, dW, db = formulas.backward_pass(W, Z, A, Y.T, g_prime)
    named = {"A0": A[0].T, "dA0": (W[1].T @ dZ[1] / m).T}
    for l in range(1, L + 1):
        named |= {f"Z{l}": Z[l].T, f"A{l}": A[l].T, f"dZ{l}": dZ[l].T / m}
        named |= {f"dW{l}": dW[l], f"db{l}": db[l][:, 0]}
        if l < L:
            named[f"dA{l}"] = (W[l + 1].T @ dZ[l + 1] / m).T
    return named


def _targets(network: Layer, loss: Loss, problem: Problem) -> np.ndarray | None:
    if not is_dense_chain(network) or problem.x.ndim != 2 or problem.weights is not None:
        return None
    last: Any = network.layers[-1]  # pyright: ignore[reportAttributeAccessIssue]
    if last.activation != mbp.identity:
        return None
    return specs.of_loss(loss).notes_target(loss, problem.y, last.features)
