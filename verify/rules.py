"""A rule: a hand-derived gradient and autodiff's, as two functions of the same arguments.

Every judge takes a rule and knows no more of it: whether it came from a layer's spec, a loss's, a
random network or somebody's own code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layer import Combinator, Layer, Loss
from verify import engine, reference, specs
from verify.interpreter import Program, trace
from verify.networks import (
    Case,
    Shape,
    draw_params,
    draw_taken,
    draw_tokens,
    opened,
    prediction_shape,
    with_loss,
)
from verify.specification import LayerSpec, LossSpec

Outputs = dict[str, Any]
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Rule:
    """A hand-derived gradient beside autodiff's."""

    name: str
    family: str
    """The row of the report: the layer's or loss's name."""
    manual: Callable[..., Outputs]
    """manual(*args) -> its results by name, gradients among them."""
    autodiff: Callable[..., Outputs]
    """The same results by jax.grad."""
    draw: Callable[[np.random.Generator, str], tuple[Any, ...]]
    """draw(rng, kind) -> args in float64; kind is one of KINDS."""
    exact: bool = False
    """Piecewise polynomial: exact in rationals and on the integer lattice."""
    cotangent: int | None = None
    """The argument in which the gradients are linear."""
    differentiated: int = 0
    """How many of the first arguments the gradients are for, where there is a cotangent."""
    part: Callable[[tuple[Any, ...], Any], tuple[Any, ...]] | None = None
    """part(args, which) -> the arguments of these examples; None where nothing adds up."""
    rows: frozenset[str] = frozenset()
    """The results that have a row for each example, by their names before a dot; all others are
    sums over examples."""
    mixes: bool = False
    """Whether an example's results depend on the others, as with statistics of the batch."""
    names: Callable[..., list[str]] = lambda *args: []
    """names(*args): the function's value, then the gradients in the order of those arguments."""
    omitted: dict[str, str] = field(default_factory=dict)
    _traced: dict[Any, tuple[Program, Program]] = field(default_factory=dict, repr=False)

    def programs(self, args: tuple[Any, ...]) -> tuple[Program, Program]:
        """The hand-derived gradient and autodiff's, traced once for each set of shapes."""
        leaves, structure = jax.tree.flatten(args)
        key = (structure, tuple((np.shape(leaf), leaf.dtype) for leaf in leaves))
        if key not in self._traced:
            self._traced[key] = (trace(self.manual, *args), trace(self.autodiff, *args))
        return self._traced[key]

    def program(self, args: tuple[Any, ...]) -> Program:
        """The hand-derived gradient alone."""
        return trace(self.manual, *args)

    def __str__(self) -> str:
        return self.name


KINDS = ("normal", "lattice", "ties", "large")
"""How arguments are drawn: normal; small integers; multiples of ½, so that kinks are met and
maxima tie; ten times as large, so that activations saturate. The judges of mutants also draw
"beside": those multiples moved by a millionth to either side, so that a kink 1e-5 off is met."""
BESIDE = 2.0**-20


def generator(*seed: int) -> np.random.Generator:
    """A random generator that follows from these numbers alone."""
    return np.random.default_rng(seed)


def numbers(rng: np.random.Generator, kind: str, shape: Shape) -> np.ndarray:
    """An array of random numbers of this kind."""
    if kind == "lattice":
        return rng.integers(-2, 3, size=shape).astype(np.float64)
    if kind in ("ties", "beside"):
        # Half are doubled, so that the kink of relu6 at 6 is met too.
        ties = rng.integers(-6, 7, size=shape) / 2 * rng.choice([1, 2], size=shape)
        return ties if kind == "ties" else ties * (1 + rng.choice([-1, 1], size=shape) * BESIDE)
    return rng.normal(size=shape) * (10 if kind == "large" else 1)


def params_of_kind(rng: np.random.Generator, kind: str, network: Layer | Loss, x: Any) -> Any:
    """Random parameters: those of `draw_params`, or numbers on the lattice."""
    params = draw_params(rng, network, x)
    if kind in ("normal", "large"):
        return params
    return jax.tree.map(lambda leaf: numbers(rng, "lattice", leaf.shape), params)


def of_layer(
    layer: Layer,
    shape: Shape,
    spec: LayerSpec | None = None,
    theirs: Callable[..., Any] | None = None,
) -> Rule:
    """The rule of a layer by itself: out, dparams, dx and dtaken for a random dout.

    Args:
        layer: of any kind that has a spec.
        shape: of its input.
        spec: in place of the registered one.
        theirs: theirs(params, x, **taken) -> out, which autodiff differentiates in place of the
            specs' references.
    """
    spec = spec or specs.of_layer(layer)

    def manual(params: Any, x: Any, dout: Any, taken: Any = NOTHING) -> Outputs:
        out, residuals = layer.forward(params, x, **opened(taken))
        dparams, dx, dtaken = layer.backward_taken(params, residuals, dout)
        return {"out": out, **flat("d", dparams), "dx": dx, **flat("d", dtaken)}

    def autodiff(params: Any, x: Any, dout: Any, taken: Any = NOTHING) -> Outputs:
        untapped: Any = lambda name, value: value  # noqa: E731
        given = opened(taken)

        def run(params: Any, x: Any, differentiated: Any) -> Any:
            if theirs is not None:
                return theirs(params, x, **{**given, **differentiated})
            return reference.forward(layer, params, x, untapped, taken={**given, **differentiated})

        differentiated = {name: given[name] for name in layer.differentiates}
        out, pull = jax.vjp(run, params, x, differentiated)
        dparams, dx, dtaken = pull(dout)
        return {"out": out, **flat("d", dparams), "dx": dx, **flat("d", dtaken)}

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        x = inputs(rng, kind, layer, shape, spec)
        params = params_of_kind(rng, kind, layer, x)
        # An error is never large: it would only scale what is compared.
        error = "normal" if kind == "large" else kind
        dout = numbers(rng, error, prediction_shape(layer, params, x))
        if not layer.takes:
            return params, x, dout
        taken = draw_taken(rng, layer, layer, params, x)
        if kind not in ("normal", "large"):
            on_lattice = functools.partial(_on_lattice, rng)
            taken |= {name: jax.tree.map(on_lattice, taken[name]) for name in layer.differentiates}
        return params, x, dout, taken

    def part(args: tuple[Any, ...], which: Any) -> tuple[Any, ...]:
        params, x, dout, *rest = args
        return params, x[which], dout[which], *(_part_of_taken(taken, which) for taken in rest)

    return Rule(
        name=f"{layer!r} on {shape}",
        family=type(layer).__name__,
        manual=manual,
        autodiff=autodiff,
        draw=draw,
        exact=spec.exact(layer),
        cotangent=2,
        differentiated=2,
        names=lambda params, *args: ["out", *flat("d", params), "dx"],
        part=part if _has_parts(layer) else None,
        rows=frozenset({"out", "dx", *(f"d{name}" for name in layer.differentiates)}),
        mixes=specs.mixes(layer),
        omitted=spec.omitted,
    )


def inputs(
    rng: np.random.Generator, kind: str, layer: Layer, shape: Shape, spec: LayerSpec | None = None
) -> np.ndarray:
    """An input of this kind of numbers, or of integers where the layer takes those."""
    tokens = draw_tokens(rng, layer, shape, spec)
    return numbers(rng, kind, shape) if tokens is None else tokens


def _on_lattice(rng: np.random.Generator, leaf: np.ndarray) -> np.ndarray:
    return numbers(rng, "lattice", leaf.shape) if leaf.dtype.kind == "f" else leaf


def _has_parts(layer: Layer) -> bool:
    """Whether a part of the examples can be taken: not of noise, which is each place's own, nor of
    states that are nested or stacked.
    """
    return "key" not in layer.takes and not (
        "state" in layer.takes and isinstance(layer, Combinator)
    )


def _part_of_taken(taken: Mapping[str, Any], which: Any) -> dict[str, Any]:
    """What these examples take: their part of masks, memory and state; statistics as they are."""
    return {
        name: each if name == "statistics" else jax.tree.map(lambda leaf: leaf[which], each)
        for name, each in taken.items()
    }


def of_loss(loss: Loss, shape: Shape, spec: LossSpec | None = None) -> Rule:
    """The rule of a loss by itself: values, and the error of weighted predictions.

    If it has parameters they are the first of the arguments, and their gradients among the results.
    """
    spec = spec or specs.of_loss(loss)

    def manual(*args: Any) -> Outputs:
        *own, prediction, target, weights = args
        values, dparams, error = loss.sweep(own[0] if own else (), prediction, target, weights)
        return {"values": values, **flat("d", dparams), "dprediction": error}

    def autodiff(*args: Any) -> Outputs:
        *own, prediction, target, weights = args

        def total(own: Any, prediction: Any) -> Any:
            values = spec.reference(loss, prediction, target, *own)
            return jnp.sum(weights * values), values

        (dparams, error), values = jax.grad(total, (0, 1), has_aux=True)(own, prediction)
        return {"values": values, **flat("d", *(dparams or [()])), "dprediction": error}

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        prediction = numbers(rng, kind, shape)
        target = spec.target(rng, loss, shape)
        if kind in ("lattice", "ties", "beside") and target.dtype.kind == "f":
            target = np.round(2 * target) / 2
        exact = kind in ("lattice", "ties", "beside")
        weights = numbers(rng, "lattice" if exact else kind, shape[:-1])
        if not loss.parametric:
            return prediction, target, weights
        return params_of_kind(rng, kind, loss, prediction), prediction, target, weights

    own = int(loss.parametric)

    return Rule(
        name=f"{loss!r} on {shape}",
        family=type(loss).__name__,
        manual=manual,
        autodiff=autodiff,
        draw=draw,
        exact=spec.exact(loss),
        cotangent=own + 2,
        differentiated=own + 1,
        names=lambda *args: ["values", *flat("d", *(args[:own] or [()])), "dprediction"],
        part=lambda args, which: (*args[:own], *(each[which] for each in args[own:])),
        rows=frozenset({"values", "dprediction"}),
        omitted=spec.omitted,
    )


def of_case(case: Case, *, every_intermediate: bool = True) -> Rule:
    """The rule of a random network: J, the gradient, and every intermediate between."""
    network, loss = case.used, case.loss

    def gradient_only(params: Any, x: Any, y: Any, weights: Any, taken: Any = NOTHING) -> Outputs:
        settings: Any = {"network": network, "loss": loss, "weights": weights, **opened(taken)}
        total, grads = mbp.manual_value_and_grads(params, x, y, **settings)
        return {"J": total, **dict(reference.named_gradients(network, loss, grads))}

    def autodiff_only(params: Any, x: Any, y: Any, weights: Any, taken: Any = NOTHING) -> Outputs:
        given = opened(taken)

        def total(params: Any) -> Any:
            untapped: Any = lambda name, value: value  # noqa: E731
            return reference.objective(network, loss, params, x, y, weights, untapped, given)[0]

        value, grads = jax.value_and_grad(total)(params)
        return {"J": value, **dict(reference.named_gradients(network, loss, grads))}

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        seeded = replace(case, seed=(*case.seed, int(rng.integers(2**31))))
        problem = seeded.problem()
        if kind == "normal":
            return tuple(problem)
        x = inputs(rng, kind, network, case.x_shape)
        y = problem.y
        if kind in ("lattice", "ties") and y.dtype.kind == "f":
            y = np.round(2 * y) / 2
        weights = problem.weights
        if weights is not None and kind in ("lattice", "ties"):
            weights = numbers(rng, "lattice", weights.shape)
        params = params_of_kind(rng, kind, network, x)
        shape = prediction_shape(network, params, x)
        of_loss = functools.partial(params_of_kind, rng, kind)
        return with_loss(params, loss, shape, of_loss), x, y, weights, problem.taken

    def part(args: tuple[Any, ...], which: Any) -> tuple[Any, ...]:
        params, *each, taken = args
        return params, *(value[which] for value in each), _part_of_taken(taken, which)

    if every_intermediate:
        manual: Any = functools.partial(engine.intermediates, network, loss)
        autodiff: Any = functools.partial(engine.by_autodiff, network, loss)
    else:
        manual, autodiff = gradient_only, autodiff_only
    return Rule(
        name=str(case),
        family="networks",
        manual=lambda *args: manual(*case.narrow(args)),
        # In at least float32: in half precision its constants would be rounded to three digits.
        autodiff=lambda *args: case.narrow(autodiff(*case.narrow(args, at_least="float32"))),
        draw=draw,
        exact=specs.of_layer(network).exact(network) and specs.of_loss(loss).exact(loss),
        # With a mean over the batch, or with the intermediates of each example, nothing adds up.
        part=None
        if every_intermediate or case.weighting == "mean" or not _has_parts(network)
        else part,
        mixes=specs.mixes(network),
        omitted=specs.of_loss(loss).omitted,
    )


def of_specs(batch: int = 1) -> list[Rule]:
    """The rules of every sample of every spec.

    Args:
        batch: how many times as many examples as the samples have.
    """
    found = [
        of_layer(layer, (batch * shape[0], *shape[1:]), spec)
        for spec in specs.layers()
        for layer, shape in spec.samples
    ]
    for spec in specs.losses():
        for loss in spec.samples:
            found += [of_loss(loss, (batch * m, *rest), spec) for m, *rest in spec.shapes]
    return found


def one_of_each(every: list[Rule]) -> list[Rule]:
    """The first rule of each family."""
    return list({rule.family: rule for rule in reversed(every)}.values())[::-1]


def flat(prefix: str, tree: Any) -> Outputs:
    """Leaves of a tree by name: "dparams", "dparams.W", "dparams.0.b" for nested ones."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        inner = jax.tree_util.keystr(path, simple=True, separator=".")
        joint = "." if inner and len(prefix) > 1 else ""
        named[f"{prefix}{joint}{inner}"] = leaf
    return named
