"""The rows of the matrix: functions with our gradients, beside the same functions in plain JAX."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.activation import Activation
from manual_bp.interop import as_function, as_loss, elementwise, functions
from manual_bp.layer import Layer, Loss
from manual_bp.layers.batch_norm import BatchNorm
from verify import reference, specs
from verify.networks import opened
from verify.rules import generator, of_layer, of_loss
from verify.specification import Shape

Tree = Any
Function = Callable[[Mapping[str, Any], Mapping[str, Any]], jax.Array]
"""f(d, c) -> out: a function of what is differentiated, by name, and of constants."""


@dataclass(frozen=True)
class Row:
    """A function with our gradient, and the same one with autodiff's."""

    family: str
    name: str
    ours: Function
    theirs: Function
    d: Mapping[str, Any]
    """What is differentiated, float64: "params", "x", "memory", ..."""
    c: Mapping[str, Any]
    """Constants: tokens, masks, keys, statistics, targets."""
    dout: np.ndarray
    """The cotangent of out."""
    divided: frozenset[str]
    """The names of what has examples on its first axis."""
    mixes: bool = False
    """Whether an example's out depends on the others."""
    tangents: bool = False
    """Whether it has a rule for forward mode too."""
    exact: bool = False
    """Whether it is judged in fractions: gradients are sums of the weights themselves."""
    on_devices: Function | None = None
    """ours, for the code of one of several devices, where that must say so (BatchNorm)."""

    def __str__(self) -> str:
        return self.name


EXAMPLES = 8
"""As many as devices."""


def every_row() -> list[Row]:
    """A row for each kind of layer and loss, each functional form and each activation."""
    return [*_of_layers(), *_of_losses(), *_of_forms(), *_of_activations()]


def _of_layers() -> Iterator[Row]:
    for spec in specs.layers():
        if issubclass(spec.layer, Activation):
            continue
        layer, shape = spec.samples[0]
        yield of_a_layer(layer, (EXAMPLES, *shape[1:]))


def of_a_layer(layer: Layer, shape: Shape, seed: int = 0) -> Row:
    """as_function(layer) beside the reference that its spec gives."""
    rule = of_layer(layer, shape)
    params, x, dout, *rest = rule.draw(generator(seed), "normal")
    taken = dict(rest[0]) if rest else {}
    inputs = {"x": x} if x.dtype.kind == "f" else {}
    named = {name: taken[name] for name in layer.differentiates}
    d = {"params": params, **inputs, **named}
    c = {name: each for name, each in taken.items() if name not in d}
    c |= {} if inputs else {"x": x}

    def ours(d: Any, c: Any, layer: Layer = layer) -> Any:
        given = {**d, **opened(c)}
        return as_function(layer)(given.pop("params"), given.pop("x"), **given)

    def theirs(d: Any, c: Any) -> Any:
        given = {**d, **opened(c)}
        untapped: Any = lambda name, value: value  # noqa: E731
        params, x = given.pop("params"), given.pop("x")
        return reference.forward(layer, params, x, untapped, taken=given)

    joined = None
    if isinstance(layer, BatchNorm):  # its statistics are of all devices' examples
        over_devices = dataclasses.replace(layer, axis_name="data")
        joined = functools.partial(ours, layer=over_devices)
    return Row(
        family=type(layer).__name__,
        name=rule.name,
        ours=ours,
        theirs=theirs,
        d=d,
        c=c,
        dout=dout,
        divided=_divided({**d, **c}),
        mixes=rule.mixes,
        on_devices=joined,
    )


def _of_losses() -> Iterator[Row]:
    for spec in specs.losses():
        loss, shape = spec.samples[0], spec.shapes[0]
        yield of_a_loss(loss, (EXAMPLES, *shape[1:]))


def of_a_loss(loss: Loss, shape: Shape, seed: int = 0) -> Row:
    """as_loss(loss) beside the reference that its spec gives."""
    spec, rule = specs.of_loss(loss), of_loss(loss, shape)
    exact = "L4 bounds" in rule.omitted
    *own, prediction, target, weights = rule.draw(generator(seed), "normal")
    f = as_loss(loss)

    def ours(d: Any, c: Any) -> Any:
        return f(d["x"], c["target"], d["params"] if own else ())

    def theirs(d: Any, c: Any) -> Any:
        return spec.reference(loss, d["x"], c["target"], *([d["params"]] if own else []))

    return Row(
        family=type(loss).__name__,
        name=rule.name,
        ours=ours,
        theirs=theirs,
        d={"x": prediction, **({"params": own[0]} if own else {})},
        c={"target": target},
        dout=weights,
        divided=frozenset({"x", "target"}),
        exact=exact,
    )


def _of_forms() -> Iterator[Row]:
    """Functional forms that aren't one layer's function under another name."""
    rng = generator(1)
    q, k, v, dout = (rng.normal(size=(EXAMPLES, 3, heads, 4)) for heads in (2, 1, 1, 2))
    mask = rng.random((EXAMPLES, 2, 3, 3)) < 0.7  # some queries may read nothing
    for name, settings in (("attention", {}), ("attention in blocks", {"block": 2})):
        yield Row(
            family=name,
            name=f"{name} of {q.shape}",
            ours=lambda d, c, settings=settings: functions.attention(
                **d, **c, causal=True, soft_cap=3.0, **settings
            ),
            theirs=_plain_attention,
            d={"q": q, "k": k, "v": v},
            c={"mask": mask},
            dout=dout,
            divided=frozenset("qkv") | {"mask"},
        )
    h, W, b = (rng.normal(size=shape) for shape in ((EXAMPLES, 3, 4), (6, 4), (6,)))
    labels = rng.integers(-1, 6, (EXAMPLES, 3))
    yield Row(
        family="linear_cross_entropy",
        name=f"linear_cross_entropy of {h.shape}",
        ours=lambda d, c: functions.linear_cross_entropy(**d, **c, chunk=2, ignored_class=-1),
        theirs=_plain_cross_entropy,
        d={"h": h, "W": W, "b": b, "weights": rng.random((EXAMPLES, 3))},
        c={"labels": labels},
        dout=np.array(1.5),
        divided=frozenset({"h", "labels", "weights"}),
    )


def _plain_attention(d: Any, c: Any) -> jax.Array:
    q, k, v = (jnp.swapaxes(d[name], 1, 2) for name in "qkv")  # the one head of k, v is broadcast
    scores = 3.0 * jnp.tanh(q @ jnp.swapaxes(k, -1, -2) / 2.0 / 3.0)  # √d is 2
    readable = (c["mask"] & np.tril(np.ones((3, 3), bool))).astype(scores.dtype)
    exponentials = jnp.exp(scores) * readable
    total = exponentials.sum(-1, keepdims=True) + (readable.sum(-1, keepdims=True) == 0)
    return jnp.swapaxes((exponentials / total) @ v, 1, 2)


def _plain_cross_entropy(d: Any, c: Any) -> jax.Array:
    logits = d["h"] @ d["W"].T + d["b"]
    chosen = jax.nn.one_hot(c["labels"], logits.shape[-1], dtype=logits.dtype)
    values = jax.scipy.special.logsumexp(logits, axis=-1) - (chosen * logits).sum(-1)
    return jnp.where(c["labels"] != -1, d["weights"] * values, 0).sum()


def _of_activations() -> Iterator[Row]:
    for spec in specs.layers():
        if not issubclass(spec.layer, Activation):
            continue
        activation, _ = spec.samples[0]
        rule = of_layer(activation, (EXAMPLES, 2))
        _, z, da = rule.draw(generator(2), "normal")
        assert isinstance(activation, Activation)
        g = elementwise(activation)
        yield Row(
            family=type(activation).__name__,
            name=f"elementwise({activation!r})",
            ours=lambda d, c, g=g: g(d["x"]),
            theirs=lambda d, c, a=activation: reference.forward(
                a, (), d["x"], lambda name, value: value, taken={}
            ),
            d={"x": z},
            c={},
            dout=da,
            divided=frozenset("x"),
            tangents=True,
        )


def _divided(named: Mapping[str, Any]) -> frozenset[str]:
    """What has examples first: x, and masks, memories and states whose leaves do."""

    def fits(name: str) -> bool:
        leaves = jax.tree.leaves(named[name])
        return name not in ("params", "statistics", "key") and all(
            leaf.shape[:1] == (EXAMPLES,) for leaf in leaves
        )

    return frozenset(filter(fits, named))
