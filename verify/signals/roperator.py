"""Products with Hessian and Gauss-Newton matrix, Hessians of losses, g'': by jvp of jax.grad."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp import activations as table
from manual_bp.activation import Activation
from manual_bp.layer import Layer, Loss
from manual_bp.signals.loss_curvature import CURVATURES, hessian_factor, hessian_vector
from verify import reference, specs
from verify.networks import Shape
from verify.rules import Rule, numbers, of_loss, params_of_kind
from verify.signals.cases import objective, of_signal
from verify.specs.activations import DYADIC, SETTINGS
from verify.specs.activations import JAX as OF_JAX

CASES: tuple[tuple[Layer, Loss, Shape, bool], ...] = (
    (mbp.mlp([3, 2, 2]), mbp.SquaredError(), (2, 3), False),
    (mbp.mlp([2, 3, 2], hidden=mbp.tanh), mbp.SoftmaxCrossEntropy(), (2, 2), False),
    (
        mbp.sequential(
            mbp.Flatten(),
            mbp.Dense(2, mbp.squared_relu, bias=False),
            mbp.squared_relu,
            mbp.Flatten(),
            mbp.Dense(2),
        ),
        mbp.SquaredError(),
        (2, 1, 2),
        True,
    ),
    (
        mbp.sequential(mbp.Dense(2), mbp.stack(mbp.skip(mbp.Dense(2, mbp.tanh)), 2), mbp.Dense(2)),
        mbp.SigmoidBinaryCrossEntropy(),
        (2, 2),
        True,
    ),
    (
        mbp.tied(
            mbp.sequential(mbp.Dense(2, mbp.silu), mbp.Dense(2, mbp.sigmoid), mbp.Dense(2)),
            ((0, "W"), (2, "W")),
        ),
        mbp.PoissonNegativeLogLikelihood(),
        (2, 2),
        False,
    ),
    (
        mbp.sequential(
            mbp.tanh,
            mbp.checkpoint(mbp.Dense(2)),
            mbp.parallel(mbp.Dense(1), mbp.sequential(mbp.sigmoid, mbp.Dense(2))),
        ),
        mbp.SoftmaxCrossEntropy(ignored_class=-1),
        (2, 2),
        False,
    ),
    (
        mbp.sequential(
            mbp.Dense(2), mbp.parallel(mbp.Dense(2, mbp.relu), mbp.Dense(2), combine="sum")
        ),
        mbp.LogCosh(),
        (2, 2),
        False,
    ),
)
"""Networks, losses, shapes of x, and whether weights are given."""

LOSSES: tuple[Loss, ...] = (
    mbp.SquaredError(),
    mbp.Huber(),
    mbp.Huber(0.5),
    mbp.LogCosh(),
    mbp.AbsoluteError(),
    mbp.SoftmaxCrossEntropy(),
    mbp.SoftmaxCrossEntropy(label_smoothing=0.1),
    mbp.SoftmaxCrossEntropy(ignored_class=-1),
    mbp.SigmoidBinaryCrossEntropy(),
    mbp.PoissonNegativeLogLikelihood(),
    mbp.KLDivergence(),
    mbp.Hinge(),
    mbp.MulticlassHinge(),
    mbp.Focal(),
    mbp.Focal(alpha=0.75, gamma=0.5),
    mbp.CosineSimilarity(),
)
"""Every kind of loss that has a Hessian, at settings whose kinks are met."""


def rules() -> list[Rule]:
    """Of every case both products, of every loss its Hessian, of every activation g''."""
    return [
        # below the squared error, whose H is 1, G needs no prediction: mutants there change nothing
        *(of_products(*case, both=case[1] != mbp.SquaredError()) for case in CASES),
        *map(of_loss_product, LOSSES),
        # bounds can't judge MulticlassHinge, and fractions have no roots
        *(of_loss_factor(each) for each in LOSSES if is_convex(each) and bounded(each)),
        *map(of_curvature, activations()),
    ]


def of_products(
    network: Layer, loss: Loss, shape: Shape, weighted: bool = False, *, both: bool = True
) -> Rule:
    """Both products on a network with a random vector, or the Hessian's alone."""

    def ours(params: Any, x: Any, y: Any, weights: Any, vector: Any) -> dict[str, Any]:
        settings: Any = {"network": network, "loss": loss, "weights": weights}
        found = {"H": mbp.hessian_vector_product(params, vector, x, y, **settings)}
        if both:
            found["G"] = mbp.ggn_vector_product(params, vector, x, y, **settings)
        return found

    def theirs(params: Any, x: Any, y: Any, weights: Any, vector: Any) -> dict[str, Any]:
        found = by_autodiff(network, loss, params, vector, x, y, weights)
        return found if both else {"H": found["H"]}

    exact = specs.of_layer(network).exact(network) and specs.of_loss(loss).exact(loss)
    rule = of_signal(
        "CurvatureProducts", network, loss, shape, ours, theirs, exact=exact, weighted=weighted
    )

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        params, x, y, weights, _ = rule.draw(rng, kind)
        kind = "normal" if kind == "large" else kind  # it would only scale what is compared
        return params, x, y, weights, {"vector": params_of_kind(rng, kind, network, x)}

    return replace(rule, draw=draw)


def by_autodiff(
    network: Layer, loss: Loss, params: Any, vector: Any, x: Any, y: Any, weights: Any
) -> dict[str, Any]:
    """H V as the derivative of jax.grad, and G V with a Jacobian, a Hessian and its transpose."""
    total = objective(network, loss)

    def predict(params: Any) -> jax.Array:
        return reference.forward(network, params, x, lambda name, value: value)

    def of_prediction(prediction: Any) -> jax.Array:
        values = of_value(loss, prediction, y)
        counted = specs.of_loss(loss).counts(loss, y)
        if weights is not None:
            return jnp.sum(weights * values)
        return jnp.sum(values) / (values.size if counted is None else jnp.maximum(counted.sum(), 1))

    _, hessian = jax.jvp(lambda each: jax.grad(total)(each, x, y, weights), (params,), (vector,))
    prediction, moved = jax.jvp(predict, (params,), (vector,))
    _, bent = jax.jvp(jax.grad(of_prediction), (prediction,), (moved,))
    _, pull = jax.vjp(predict, params)
    return {"H": hessian, "G": pull(bent)[0]}


def of_value(loss: Loss, prediction: Any, target: Any) -> jax.Array:
    """The judge's own loss; where |r| = δ in Huber's its second derivative is from inside."""
    if isinstance(loss, mbp.Huber):
        r = prediction - target
        inside, size = jnp.square(r) / 2, jnp.abs(r)
        outside = loss.delta * (size - loss.delta / 2)
        return jnp.where(size <= loss.delta, inside, outside).sum(-1)
    return specs.of_loss(loss).reference(loss, prediction, target)


def of_loss_product(loss: Loss, shape: Shape = (2, 3)) -> Rule:
    """H v of a loss."""

    def ours(prediction: Any, target: Any, v: Any) -> dict[str, Any]:
        return {"dHv": hessian_vector(loss, prediction, target, v)}

    def theirs(prediction: Any, target: Any, v: Any) -> dict[str, Any]:
        return {"dHv": times(loss, prediction, target, v)}

    rule = of_loss(loss, shape)

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        prediction, target, _ = rule.draw(rng, kind)
        return prediction, target, numbers(rng, "normal" if kind == "large" else kind, shape)

    return Rule(
        name=f"H v of {loss!r} on {shape}",
        family="LossHessian",
        manual=ours,
        autodiff=theirs,
        draw=draw,
        exact=rule.exact,
        omitted=rule.omitted,
    )


def of_loss_factor(loss: Loss, shape: Shape = (2, 3)) -> Rule:
    """The s_k: roots of a diagonal H; √(Y p_k) ∂log p_k/∂z for softmax cross-entropy."""

    def ours(prediction: Any, target: Any) -> dict[str, Any]:
        return {"dS": hessian_factor(loss, prediction, target)}

    def theirs(prediction: Any, target: Any) -> dict[str, Any]:
        if isinstance(loss, mbp.SoftmaxCrossEntropy):
            return {"dS": _of_log_softmax(loss, prediction, target)}
        units = jnp.eye(shape[-1], dtype=prediction.dtype)
        each = [jnp.broadcast_to(unit, prediction.shape) for unit in units]
        return {"dS": jnp.sqrt(jnp.stack([times(loss, prediction, target, v) for v in each]))}

    rule = of_loss(loss, shape)
    return Rule(
        name=f"factors of H of {loss!r} on {shape}",
        family="LossFactor",
        manual=ours,
        autodiff=theirs,
        draw=lambda rng, kind: rule.draw(rng, kind)[:2],
    )


def _of_log_softmax(loss: mbp.SoftmaxCrossEntropy, z: Any, target: Any) -> Any:
    mask = specs.of_loss(loss).counts(loss, target)
    total = target.sum(-1) if target.shape == z.shape else jnp.ones(z.shape[:-1])
    total = total if mask is None else jnp.where(mask, total, 0)
    found = []
    for k in range(z.shape[-1]):
        slope = jax.grad(lambda each, k=k: jax.nn.log_softmax(each)[..., k].sum())(z)
        found.append(jnp.sqrt(total * jax.nn.softmax(z)[..., k])[..., None] * slope)
    return jnp.stack(found)


def times(loss: Loss, prediction: Any, target: Any, v: Any) -> Any:
    """H v as the derivative of jax.grad."""
    total = lambda each: of_value(loss, each, target).sum()  # noqa: E731
    return jax.jvp(jax.grad(total), (prediction,), (v,))[1]


def of_curvature(activation: Activation) -> Rule:
    """g'' of an activation, where it isn't 0 throughout."""

    def theirs(z: Any) -> dict[str, Any]:
        slope = jax.grad(lambda each: of_z(activation, each).sum())
        return {"d2": jax.jvp(slope, (z,), (jnp.ones_like(z),))[1]}

    return Rule(
        name=f"g'' of {activation!r}",
        family="Curvature",
        manual=lambda z: {"d2": activation.curvature(z)},
        autodiff=theirs,
        draw=lambda rng, kind: (numbers(rng, kind, (2, 3)),),
        exact=type(activation) in DYADIC,
    )


def of_z(activation: Activation, z: Any) -> Any:
    """g(z) by jax.nn; for celu and softsign so that g'' at their kink is the one stated."""
    if isinstance(activation, table.Celu):
        below = activation.alpha * jnp.expm1(jnp.where(z > 0, 0, z) / activation.alpha)
        return jnp.where(z > 0, z, below)
    if isinstance(activation, table.Softsign):
        return z / (1 + jnp.maximum(z, 0) + jnp.maximum(-z, 0))
    return OF_JAX[type(activation)](activation, z)


def is_convex(loss: Loss) -> bool:
    """Whether its Hessian has factors."""
    return CURVATURES[type(loss)].factor is not None


def bounded(loss: Loss) -> bool:
    """Whether error bounds can judge it."""
    return "L4 bounds" not in specs.of_loss(loss).omitted


def activations() -> list[Activation]:
    """Every activation, families at two settings."""
    kinds: list[Any] = list(OF_JAX)
    return [
        each
        for kind in kinds
        for each in (map(kind, SETTINGS[kind][:2]) if kind in SETTINGS else [kind()])
    ]
