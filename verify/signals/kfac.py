"""K-FAC factors, from inputs and errors that autodiff finds in the judge's own network.

The error of a layer is what adding zeros to its Z changes: ∂(...)/∂(zeros). Each layer's inputs are
read off on the way forward.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.layer import Layer, Loss
from manual_bp.layers.conv import Conv
from manual_bp.layers.dense import Dense
from manual_bp.layers.embedding import Embedding
from verify import reference, specs
from verify.networks import Shape
from verify.rules import Rule
from verify.signals.cases import of_signal

CASES: tuple[tuple[Layer, Loss, Shape, str, bool], ...] = (
    (mbp.mlp([2, 2, 3], hidden=mbp.tanh), mbp.SoftmaxCrossEntropy(), (2, 2), "exact", False),
    (
        mbp.sequential(Embedding(3, 2), Dense(2, bias=False)),
        mbp.SigmoidBinaryCrossEntropy(),
        (2, 2),
        "exact",
        True,
    ),
    (
        mbp.sequential(Embedding(3, 2), Dense(2)),
        mbp.SquaredError(),
        (2, 2),
        "empirical",
        True,
    ),
    (
        mbp.sequential(Conv(2, 2, padding="VALID", groups=2), mbp.Flatten(), Dense(2)),
        mbp.SquaredError(),
        (2, 3, 2),
        "empirical",
        False,
    ),
)


def rules() -> list[Rule]:
    """The factors of every case."""
    return [
        of_signal(
            "KFACFactors",
            network,
            loss,
            shape,
            functools.partial(_ours, network, loss, fisher),
            functools.partial(_theirs, network, loss, fisher),
            weighted=weighted,
        )
        for network, loss, shape, fisher, weighted in CASES
    ]


def _not_below_0(weights: Any) -> Any:
    return None if weights is None else weights * weights


def _ours(
    network: Layer, loss: Loss, fisher: str, params: Any, x: Any, y: Any, weights: Any
) -> Any:
    weights = _not_below_0(weights)
    return mbp.kfac_factors(
        params, x, y, network=network, loss=loss, weights=weights, fisher=fisher
    )


def _theirs(
    network: Layer, loss: Loss, fisher: str, params: Any, x: Any, y: Any, weights: Any
) -> Any:
    factors = kfac_factors(network, loss, fisher, params, x, y, _not_below_0(weights))
    return tuple(each or () for each in factors)


def kfac_factors(
    network: Any, loss: Loss, fisher: str, params: Any, x: Any, y: Any, weights: Any
) -> list[Any]:
    """{"A": ..., "G": ...} of each layer of a sequential, None for one without params."""
    outs, zs = {0: x}, {}

    def run(zeros: dict[str, jax.Array]) -> jax.Array:
        def tap(name: str, value: jax.Array) -> jax.Array:
            if name.startswith("Z"):
                zs[name] = value
            else:
                outs[int(name.lstrip("Aout"))] = value
            return value + zeros.get(name, 0)

        return reference.forward(network, params, x, tap)

    prediction = run({})
    inputs = dict(outs)
    places = {
        number: f"{'Z' if isinstance(layer, Dense) else 'out'}{number}"
        for number, layer in enumerate(network.layers, 1)
        if isinstance(layer, Dense | Conv | Embedding)
    }
    zeros = {
        name: jnp.zeros_like(zs[name] if name in zs else outs[number])
        for number, name in places.items()
    }
    if weights is None:
        weights = jnp.ones(prediction.shape[:-1]) / prediction[..., 0].size

    def values_of(prediction: jax.Array) -> jax.Array:
        return specs.of_loss(loss).reference(loss, prediction, y)

    if fisher == "exact":
        n = prediction.size
        H = jax.hessian(lambda z: jnp.sum(weights * values_of(z)))(prediction).reshape(n, n)
        J = jax.jacobian(run)(zeros)
        moments = {name: _through(each, H, len(x)) for name, each in J.items()}
    else:
        errors = jax.grad(lambda zeros: jnp.sum(jnp.sqrt(weights) * values_of(run(zeros))))(zeros)
        moments = {name: _of_places(each) for name, each in errors.items()}
    v = weights.reshape(len(x), -1).sum(1)
    share = jnp.where(v.sum() == 0, 0, v / jnp.where(v.sum() == 0, 1, v.sum()))
    found: list[Any] = [None] * len(network.layers)
    for number, name in places.items():
        layer, G = network.layers[number - 1], moments[name]
        found[number - 1] = _of_layer(layer, inputs[number - 1], G, share)
    return found


def _through(J: jax.Array, H: jax.Array, m: int) -> jax.Array:
    """Σ over examples and places of Jᵀ H J, by their number; J: (*prediction, m, ..., o)."""
    rows = J.reshape(len(H), m, -1, J.shape[-1])
    return jnp.einsum("pmso,pq,qmsr->or", rows, H, rows) / rows.shape[2]


def _of_places(errors: jax.Array) -> jax.Array:
    rows = errors.reshape(len(errors), -1, errors.shape[-1])
    return jnp.einsum("mso,msr->or", rows, rows) / rows.shape[1]


def _of_layer(layer: Any, x: jax.Array, G: jax.Array, share: jax.Array) -> dict[str, Any]:
    if isinstance(layer, Embedding):
        seen = jax.nn.one_hot(x, layer.vocabulary).sum(1)
        return {"A": share @ seen, "G": G}
    if isinstance(layer, Conv):  # one axis, two places wide, no padding
        groups, o = layer.groups, layer.features // layer.groups
        c = x.shape[-1] // groups
        parts = [x[..., g * c : (g + 1) * c] for g in range(groups)]
        windows = [jnp.concatenate([part[:, :-1], part[:, 1:]], -1) for part in parts]
        return {
            "A": jnp.stack([_of_inputs(each, share, True) for each in windows]),
            "G": jnp.stack([G[g * o : (g + 1) * o, g * o : (g + 1) * o] for g in range(groups)]),
        }
    return {"A": _of_inputs(x, share, layer.bias), "G": G}


def _of_inputs(x: jax.Array, share: jax.Array, bias: bool) -> jax.Array:
    rows = x.reshape(len(x), -1, x.shape[-1])
    if bias:
        rows = jnp.concatenate([rows, jnp.ones_like(rows[..., :1])], -1)
    return jnp.einsum("m,msi,msj->ij", share, rows, rows)
