"""Random architectures, and problems to judge them on.

A case is a network, a loss, a shape and a seed: all that is drawn, small enough to print. A problem
is what a case is judged on: float64 parameters away from zero, inputs, targets, weights. Both
follow from the seed of the run and the number of the case alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.activation import Activation
from manual_bp.layer import NESTED, Combinator, Layer, Loss, output_shape
from verify import specs

Shape = tuple[int, ...]


class Problem(NamedTuple):
    """What a case is judged on, as NumPy arrays of float64."""

    params: Any
    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None
    """None for the mean."""
    taken: dict[str, Any]
    """What the network takes by name; "key" as a seed, see `opened`."""


@dataclass(frozen=True)
class Case:
    """A random architecture with its loss and the shape of its input."""

    network: Layer
    loss: Loss
    x_shape: Shape
    weighting: str = "mean"
    """ "mean", "given" (random weights, some 0) or "ones"."""
    seed: tuple[int, ...] = (0,)
    dtype: str = "float64"
    """Of params, x, y and weights inside the program; the numbers drawn are held exactly by it."""
    inference: bool = False
    """Whether the network is used as it is when not training."""

    @property
    def used(self) -> Layer:
        """The network that is judged: itself, or what it is when not training."""
        return self.network.inference() if self.inference else self.network

    def problem(self) -> Problem:
        """The numbers of this case, always the same ones."""
        rng = np.random.default_rng(self.seed)
        tokens = draw_tokens(rng, self.network, self.x_shape)
        x = rng.normal(size=self.x_shape) if tokens is None else tokens
        of_network = draw_params(rng, self.network, x)
        shape = prediction_shape(self.network, of_network, x)
        params = with_loss(of_network, self.loss, shape, functools.partial(draw_params, rng))
        y = specs.of_loss(self.loss).target(rng, self.loss, shape)
        weights = None
        if self.weighting == "given":
            weights = rng.normal(size=shape[:-1]) * (rng.random(shape[:-1]) < 0.8)
        elif self.weighting == "ones":
            weights = np.ones(shape[:-1])
        taken = draw_taken(rng, self.used, self.network, of_network, x)
        return jax.tree.map(self._held, Problem(params, x, y, weights, taken))

    def _held(self, leaf: np.ndarray) -> np.ndarray:
        """Rounded to what the dtype holds, as float64."""
        return (
            leaf.astype(jnp.dtype(self.dtype)).astype(np.float64)
            if leaf.dtype.kind == "f"
            else leaf
        )

    def narrow(self, values: Any, at_least: str = "float16") -> Any:
        """Floats in the case's dtype, or a wider one, as the program is traced."""
        dtype = self.dtype
        if dtype == "float64":  # as they are: the same case is compiled in float32 too
            return values
        if jnp.finfo(dtype).bits < jnp.finfo(at_least).bits:
            dtype = at_least
        return jax.tree.map(
            lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            values,
        )

    def __str__(self) -> str:
        weights = "" if self.weighting == "mean" else f", weights {self.weighting}"
        dtype = "" if self.dtype == "float64" else f", {self.dtype}"
        dtype += ", not training" if self.inference else ""
        return f"{self.network!r} with {self.loss!r}, x {self.x_shape}{weights}{dtype}"


def draw_case(seed: int, number: int, *, most_layers: int = 12, most_wide: int = 96) -> Case:
    """The case of this number in a run with this seed.

    Args:
        seed: of the run.
        number: of the case; every case can be drawn by itself.
        most_layers: bound on the depth.
        most_wide: bound on the width of the input.

    Returns:
        A case: a chain of 1 to most_layers layers of any kind that has a spec, batch 1 to 64.
    """
    rng = np.random.default_rng([seed, number])
    batch = int(rng.choice([1, 2, 3, 4, 5, 8, 16, 31, 64], p=[0.06] + [0.1175] * 8))
    wide = rng.random() < 0.1
    features = int(rng.integers(1, most_wide + 1)) if wide else int(rng.integers(1, 13))
    depth = int(rng.integers(1, most_layers + 1))
    if rng.random() < 0.5:
        depth = min(depth, 4)
    shape: Shape = (batch, features)
    kinds = specs.losses()
    loss = kinds[rng.integers(len(kinds))].draw(rng)
    if "L4 bounds" in specs.of_loss(loss).omitted:  # what is left to judge it takes small ones
        shape, depth = (min(batch, 8), min(features, 8)), min(depth, 2)
    if rng.random() < 0.25:  # as in the notes
        return Case(draw_mlp(rng, shape, depth), loss, shape, "mean", (seed, number))
    images, tokens = rng.random() < 0.3, False
    if images:
        batch, depth = int(rng.integers(1, 5)), min(depth, 4)
        shape = (batch, *(int(each) for each in rng.integers(3, 7, 2)), int(rng.integers(1, 4)))
    elif rng.random() < 0.4:  # sequences, of vectors or of tokens
        batch, depth = min(batch, 5), min(depth, 4)
        shape = (batch, int(rng.integers(1, 5)), min(features, 8))
        tokens = rng.random() < 0.5 and any(spec.inputs for spec in specs.layers())
        shape = shape[:2] if tokens else shape
    exact = rng.random() < 0.3  # piecewise polynomial throughout, so that fractions can judge it
    if exact:
        depth = min(depth, 4)
        losses = [spec.draw(rng) for spec in specs.losses() for _ in range(2)]
        losses = [each for each in losses if specs.of_loss(each).exact(each)]
        loss = losses[rng.integers(len(losses))]
    network = draw_chain(rng, shape, depth, exact=exact, tokens=tokens)
    weighting = str(rng.choice(["mean", "given", "ones"], p=[0.7, 0.2, 0.1]))
    not_training = network.inference() != network and rng.random() < 0.5
    return Case(network, loss, shape, weighting, (seed, number), inference=not_training)


DTYPES = {"float64": 0.6, "float32": 0.2, "bfloat16": 0.1, "float16": 0.1}
"""How often random networks come in each dtype."""


def with_dtype(case: Case) -> Case:
    """The case in a random dtype that follows from its seed.

    Narrow ones are judged by their formulas, in float64 with bounds: what is rounded there is
    judged compiled, by L5. A loss that bounds can't judge stays in float64.
    """
    if "L4 bounds" in specs.of_loss(case.loss).omitted:
        return case
    rng = np.random.default_rng((*case.seed, 1))
    return replace(case, dtype=str(rng.choice(list(DTYPES), p=list(DTYPES.values()))))


def draw_mlp(rng: np.random.Generator, shape: Shape, depth: int) -> Layer:
    """The notes' network: dense layers, each with an activation but the last."""
    (dense,) = [spec for spec in specs.layers() if spec.layer is mbp.Dense]
    layers: list[Any] = [dense.draw(rng, shape) for _ in range(depth)]
    return mbp.sequential(*layers[:-1], mbp.Dense(layers[-1].features))


def draw_chain(
    rng: np.random.Generator, shape: Shape, depth: int, *, exact: bool = False, tokens: bool = False
) -> Layer:
    """Layers one after the other, most of them with parameters, the last one dense.

    On images most are convolutions, and before the last one their axes are flattened or averaged.
    With exact, only layers that are piecewise polynomial. On tokens the first one takes those.
    """
    of_kind = {spec.layer: spec for spec in specs.layers()}
    of_floats = [spec for spec in specs.layers() if spec.inputs is None]
    of_tokens = [spec for spec in specs.layers() if spec.inputs is not None]
    of_sequences = [spec for spec in of_floats if _takes_sequences_alone(spec)]
    chosen: list[Layer] = []
    start = struct = jax.ShapeDtypeStruct(shape, jnp.int32 if tokens else jnp.float32)
    if tokens:
        first = of_tokens[rng.integers(len(of_tokens))].draw(rng, shape)
        assert first is not None
        chosen, depth, shape = [first], depth + 1, output_of(first, struct)
    while len(chosen) < depth:
        # The last layer is dense: a loss needs units that no activation has squashed or zeroed.
        last = len(chosen) == depth - 1
        images = len(shape) > 3
        if last and images:
            layer = mbp.Flatten() if rng.random() < 0.5 else mbp.GlobalAvgPool()
            depth += 1
        else:
            usual = mbp.Conv if images else mbp.Dense
            often = last or rng.random() < (0.4 if images else 0.5)
            spec = of_kind[usual] if often else _any_kind(rng, of_floats)
            if len(shape) == 3 and not last and rng.random() < 0.4:
                spec = of_sequences[rng.integers(len(of_sequences))]
            layer = spec.draw(rng, shape)
        if layer is None or (exact and not specs.of_layer(layer).exact(layer)):
            continue
        struct = jax.ShapeDtypeStruct(shape, jnp.float32)
        if not _takes_alike(layer, struct, chosen, start):
            continue
        if isinstance(layer, mbp.Dense) and last and rng.random() < 0.8:
            layer = mbp.Dense(layer.features)
        chosen.append(layer)
        shape = output_of(layer, struct)
    return mbp.sequential(*chosen)


def _takes_sequences_alone(spec: Any) -> bool:
    """Whether (batch, time, features) is what the layer takes, neither vectors nor images too."""
    fits = [spec.draw(np.random.default_rng(0), (2, *axes, 4)) for axes in ((), (3,), (3, 3))]
    return [layer is not None for layer in fits] == [False, True, False]


def output_of(layer: Layer, x: jax.ShapeDtypeStruct) -> Shape:
    """The shape of what a layer makes of inputs like x."""
    return prediction_shape(layer, jax.eval_shape(layer.init, jax.random.key(0), x), x)


def _takes_alike(layer: Layer, x: Any, others: list[Layer], start: Any) -> bool:
    """Whether masks and memory that fit it here fit it in a network of inputs like `start` too, and
    fit the other layers, since all get the same ones.
    """
    for name in set(layer.takes) - {"key", *NESTED}:
        here, there = (_stand_in(name, layer, each) for each in (x, start))
        elsewhere = [_stand_in(name, each, start) for each in others if name in each.takes]
        if any(each.shape != here.shape for each in (there, *elsewhere)):
            return False
    return True


def leaves(layer: Layer) -> Iterator[Layer]:
    """The layers at the ends of a network, first to last."""
    if not isinstance(layer, Combinator):
        yield layer
        return
    for child in layer.children:
        yield from leaves(child)


def _stand_in(name: str, layer: Layer, x: Any) -> Any:
    """What the first of a network's layers that takes it says it looks like."""
    first = next(leaf for leaf in leaves(layer) if name in leaf.takes)
    return first.stand_in(name, x)


def draw_tokens(
    rng: np.random.Generator, layer: Layer, shape: Shape, spec: Any = None
) -> np.ndarray | None:
    """Integers for a layer that takes those, or whose first one does; None where x is of floats."""
    if isinstance(layer, Combinator):
        return draw_tokens(rng, layer.readers[0][1], shape)
    made = (spec or specs.of_layer(layer)).inputs
    return None if made is None else made(rng, layer, shape)


def _any_kind(rng: np.random.Generator, kinds: list[Any]) -> Any:
    """Any kind of layer: activations, of which there are many, as often as all others together."""
    activations = [spec for spec in kinds if issubclass(spec.layer, Activation)]
    others = [spec for spec in kinds if not issubclass(spec.layer, Activation)]
    group = activations if rng.random() < 0.5 else others
    return group[rng.integers(len(group))]


def with_loss(params: Any, loss: Loss, shape: Shape, draw: Any) -> Any:
    """The pair of a network's params and the loss's, which draw(loss, prediction) makes; the
    network's alone where the loss has none of its own.
    """
    if not loss.parametric:
        return params
    return params, draw(loss, jax.ShapeDtypeStruct(shape, jnp.float32))


def draw_params(rng: np.random.Generator, network: Layer | Loss, x: Any) -> Any:
    """Random parameters, none of them special: biases not 0, scales not 1.

    Matrices are scaled by the number of inputs, so that deep networks stay within float32's range.
    """
    dtype = jax.dtypes.canonicalize_dtype(x.dtype) if x.dtype.kind in "iu" else jnp.float32
    struct = jax.ShapeDtypeStruct(x.shape, dtype)
    shapes = jax.eval_shape(network.init, jax.random.key(0), struct)

    def draw(leaf: Any) -> np.ndarray:
        inputs = max(
            leaf.shape[-1:] if leaf.ndim < 3 else (leaf.shape[-1], leaf.size // leaf.shape[-1]),
            default=1,  # a scalar
        )
        scale = 1.2 / np.sqrt(inputs) if leaf.ndim > 1 else 0.7
        return scale * rng.normal(size=leaf.shape)

    return jax.tree.map(draw, shapes)


def draw_taken(
    rng: np.random.Generator, layer: Layer, training: Layer, params: Any, x: Any
) -> dict[str, Any]:
    """What the layer takes by name, at random: a seed, a mask of examples, statistics.

    Args:
        rng: the generator.
        layer: the layer that takes it.
        training: the same when training: what it observes has the shape of statistics.
        params, x: its params and input.
    """
    taken: dict[str, Any] = {}
    for name in sorted(layer.takes, key=lambda name: name == "state"):  # which needs the others
        if name == "key":
            taken[name] = np.uint32(rng.integers(2**32))
        elif name == "state":
            shapes = jax.eval_shape(functools.partial(_final_state, layer), params, x, taken)
            drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
            taken[name] = _of_those_that_take_it(layer, drawn)
        elif name == "statistics":
            taken[name] = jax.tree_util.tree_map_with_path(
                functools.partial(_statistic, rng), _statistics_shape(layer, training, params, x)
            )
        else:
            taken[name] = _mask_or_numbers(rng, _stand_in(name, layer, x))
    return taken


def _mask_or_numbers(rng: np.random.Generator, like: Any) -> np.ndarray:
    """Numbers, or a mask of which about a third is false and at least two are true."""
    if like.dtype != bool:
        return rng.normal(size=like.shape)
    places = rng.permutation(math.prod(like.shape))
    return (places < max(2 * places.size // 3, 2)).reshape(like.shape)


def _final_state(layer: Layer, params: Any, x: Any, taken: Mapping[str, Any]) -> Any:
    _, residuals = layer.forward(params, x, **opened(taken), state=None)
    return layer.observe(residuals)


def _of_those_that_take_it(layer: Layer, state: Any) -> Any:
    """The states of layers that take one, () for all others."""
    if isinstance(layer, Combinator):
        return tuple(map(_of_those_that_take_it, layer.children, state))
    return state if "state" in layer.takes else ()


def _statistic(rng: np.random.Generator, path: Any, leaf: Any) -> np.ndarray:
    drawn = rng.normal(size=leaf.shape)
    return 0.5 + np.abs(drawn) if "variance" in jax.tree_util.keystr(path) else drawn


def _statistics_shape(layer: Layer, training: Layer, params: Any, x: Any) -> Any:
    if layer is training:
        return layer.stand_in("statistics", x)

    def observed(params: Any, x: Any) -> Any:
        taken = {name: training.stand_in(name, x) for name in training.takes}
        return training.observe(training.forward(params, x, **taken)[1])

    return jax.eval_shape(observed, params, x)


def opened(taken: Mapping[str, Any]) -> dict[str, Any]:
    """What a layer takes, with a key where a seed was drawn: arrays of keys are no NumPy arrays."""
    return {name: jax.random.key(each) if name == "key" else each for name, each in taken.items()}


def prediction_shape(network: Layer, params: Any, x: Any) -> Shape:
    """The shape of what the network makes of x."""
    return tuple(output_shape(network, params, x).shape)


def describe_size(network: Layer) -> int:
    """The number of leaf layers."""
    if isinstance(network, Combinator):
        return sum(map(describe_size, network.children))
    return 1


def simpler(case: Case) -> Iterator[Case]:
    """Cases with one thing less, for finding the smallest that still fails."""
    if case.dtype != "float64":
        yield replace(case, dtype="float64")
    if case.weighting != "mean":
        yield replace(case, weighting="mean")
    if len(case.x_shape) > 2:
        yield replace(case, x_shape=(case.x_shape[0], case.x_shape[-1]))
    batch, *middle, features = list(case.x_shape)
    for smaller in {1, batch // 2} - {0, batch}:
        yield replace(case, x_shape=(smaller, *middle, features))
    for smaller in {1, features // 2, features - 1} - {0, features}:
        yield replace(case, x_shape=(batch, *middle, smaller))
    for network in specs.of_layer(case.network).shrink(case.network):
        yield replace(case, network=network)


def smallest(case: Case, fails: Any, tries: int = 200) -> Case:
    """The smallest case that still fails, by dropping one thing after the other.

    Args:
        case: a case for which fails(case) is true.
        fails: the judge; what raises counts as not failing.
        tries: how many cases to judge at most.

    Returns:
        A case that fails and none of whose tried simplifications does.
    """
    found = True
    while found and tries > 0:
        found = False
        for candidate in simpler(case):
            tries -= 1
            try:
                still = fails(candidate)
            except Exception:  # a simplification may make a network that doesn't fit together
                still = False
            if still:
                case, found = candidate, True
                break
            if tries <= 0:
                break
    return case
