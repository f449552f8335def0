"""The contract that every layer, combinator and loss keeps.

A layer is a value: a frozen dataclass of settings, with no arrays in it. Its parameters are an
argument, and what its backward pass needs from its forward pass, the *residuals*, is a result:

    params             = layer.init(key, x)
    out, residuals     = layer.forward(params, x, **taken)
    dparams, dx        = layer.backward(params, residuals, dout)

`dv` always means ∂J/∂v, the gradient of the objective with respect to v, and has the shape of v.
`backward` is the exact vector-Jacobian product of `forward`, for any `dout`:

    dx = dout · ∂out/∂x,    dparams = dout · ∂out/∂params

What a layer takes by name may have a gradient too: the memory that cross-attention reads, the state
that a recurrent layer starts from. `backward_taken` returns it beside the other two.

Everything beyond the gradient is a *walk*: the errors travel through the network as in the backward
pass, and a function of your own, the visit, sees each layer with the error that arrives there, its
parameters, its residuals, and whatever other trees are nested in the same way. The gradient itself
is the walk whose visit is each layer's own backward.

A combinator is a layer made of layers. It hands each child what the child takes, and says once how
a walk passes through it. A loss starts the backward pass: its `error` is the notes' dZ[L].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.sharding import as_divided, sharded_like, tree_sharded_like

Tree = Any  # a pytree of arrays, nested as the layer nests it
Visit = Callable[..., tuple[Tree, Any]]
"""visit(layer, dout, params, residuals, *others) -> (what was seen, dx)"""


class Setting:
    """A value that says what to compute: hashable, comparable, printable, static to JAX.

    Subclasses are frozen dataclasses. They have no leaves as pytrees, so a network may be an
    argument of a function under `jax.jit`, `jax.vmap` or `jax.lax.scan`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        jax.tree_util.register_static(cls)
        if "__repr__" not in cls.__dict__:  # else @dataclass would write one that repeats defaults
            cls.__repr__ = cls.__repr__  # the inherited one, now the class's own
        if "init" in cls.__dict__:
            cls.init = _of_canonical_dtype(cls.__dict__["init"])

    def __repr__(self) -> str:
        """What one would write to make it, without what is left at its default."""
        shown, by_position = [], True
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            by_position = by_position and not field.kw_only
            if field.default is not MISSING and value == field.default:
                by_position = False
            else:
                shown.append(f"{value!r}" if by_position else f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _of_canonical_dtype(init: Callable[..., Tree]) -> Callable[..., Tree]:
    """`init` for inputs of a dtype that JAX doesn't use, NumPy's float64: parameters get JAX's."""

    def as_jax_has_it(given: Any) -> Any:
        if hasattr(given, "dtype") and jax.dtypes.canonicalize_dtype(given.dtype) != given.dtype:
            return jax.ShapeDtypeStruct(given.shape, jax.dtypes.canonicalize_dtype(given.dtype))
        return given

    @functools.wraps(init)
    def canonical(self: Any, key: jax.Array, *given: Any, **named: Any) -> Tree:
        named = {name: as_jax_has_it(each) for name, each in named.items()}
        return init(self, key, *map(as_jax_has_it, given), **named)

    return canonical


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A box for what must stay static among residuals: a shape, a split point.

    Args:
        value: anything hashable; it is part of the tree's structure and never traced.

    Example:
        >>> jax.tree.leaves((jnp.zeros(2), Static((3, 4))))
        [Array([0., 0.], dtype=float32)]
    """

    value: Any


class Layer(Setting):
    """One step of a network: parameters and an input in, an output and residuals out."""

    takes: ClassVar[tuple[str, ...]] = ()
    """What forward wants by name beside params and x: "key", "mask", "statistics", ..."""

    differentiates: ClassVar[tuple[str, ...]] = ()
    """Those of them that have a gradient: "memory", "state"."""

    def init(self, key: jax.Array, x: Any) -> Tree:
        """Draw parameters for inputs like x (an array or a jax.ShapeDtypeStruct)."""
        del key, x
        return ()

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Tree]:
        """The layer's output, and the residuals that its backward pass needs."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(params, x)")

    def backward(self, params: Tree, residuals: Tree, dout: jax.Array) -> tuple[Tree, jax.Array]:
        """The vector-Jacobian product (dparams, dx) of forward at dout."""
        raise NotImplementedError(
            f"{type(self).__name__} must define backward(params, residuals, dout)"
        )

    def backward_taken(
        self, params: Tree, residuals: Tree, dout: jax.Array
    ) -> tuple[Tree, jax.Array, dict[str, Tree]]:
        """(dparams, dx, dtaken): backward, and the gradients of what `differentiates` names."""
        return *self.backward(params, residuals, dout), {}

    def readable(self, x: Any) -> Any:
        """Which entries of x it can read, as booleans: what isn't finite spoils all it touches."""
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.isfinite(x) if floating else jnp.ones(x.shape, bool)

    def check_values(self, x: np.ndarray, counted: np.ndarray) -> None:
        """Raise unless integers whose values are at hand can be read; called outside jit.

        Args:
            x: the input.
            counted: booleans of x's shape, which of them have a weight other than 0.
        """
        del x, counted

    def stand_in(self, name: str, x: Any) -> Any:
        """Something shaped like what forward takes by that name, for inputs like x."""
        if name == "key":
            return jax.random.key(0)
        if name == "mask":
            return jnp.ones(x.shape[:1], bool)
        if name == "state":
            return None  # zeros
        raise NotImplementedError(
            f"{type(self).__name__} takes {name}: it must define stand_in({name!r}, x)"
        )

    def observe(self, residuals: Tree) -> Tree:
        """The statistics of this batch, () if the layer gathers none."""
        del residuals
        return ()

    def inference(self) -> Layer:
        """The layer to use when not training: itself, unless training is a different function."""
        return self

    def gather(self, dparams: Tree) -> Tree:
        """Gradients as a walk saw them, one for each use of a layer, as gradients of params.

        The same, unless parameters are used in several places: there they add.
        """
        return dparams

    def gather_taken(self, dtaken: Tree) -> dict[str, Tree]:
        """Gradients of what is taken, one dict for each use, as one dict: the memory's add."""
        return dtaken

    def walk(
        self, visit: Visit, dout: jax.Array, params: Tree, residuals: Tree, *others: Tree
    ) -> tuple[Tree, jax.Array]:
        """Carry the error through the layer, visiting each leaf: (what was seen, dx).

        Args:
            visit: visit(layer, dout, params, residuals, *others) -> (what was seen, dx).
            dout: the error that arrives from above.
            params, residuals: the layer's own.
            *others: further trees, nested like params.
        """
        return visit(self, dout, params, residuals, *others)


def backward_visit(
    layer: Layer, dout: jax.Array, params: Tree, residuals: Tree
) -> tuple[Tree, jax.Array]:
    """The visit of the gradient itself: each layer's own backward pass."""
    return layer.backward(params, residuals, dout)


class Gradients(NamedTuple):
    """What `taken_visit` sees of a layer: gradients of its params, and of what it takes."""

    dparams: Tree
    dtaken: dict[str, Tree]


def taken_visit(
    layer: Layer, dout: jax.Array, params: Tree, residuals: Tree
) -> tuple[Gradients, jax.Array]:
    """The visit of the gradient and of the gradients of what is taken by name."""
    dparams, dx, dtaken = layer.backward_taken(params, residuals, dout)
    return Gradients(dparams, dtaken), dx


def gathered(layer: Layer, seen: Tree) -> Gradients:
    """What a walk with `taken_visit` saw, as gradients of params and of what the layer takes."""

    def each(part: Callable[[Gradients], Tree]) -> Tree:
        return jax.tree.map(part, seen, is_leaf=lambda tree: isinstance(tree, Gradients))

    dparams, dtaken = each(lambda seen: seen.dparams), each(lambda seen: seen.dtaken)
    return Gradients(layer.gather(dparams), layer.gather_taken(dtaken))


NESTED = ("statistics", "state")
"""What is taken nested like the network, an entry for each layer, as `observe` returns it."""


class Combinator(Layer):
    """A layer made of layers.

    A subclass says what its children are, how to rebuild itself from others, and how forward and
    walk pass through them. Params, what is observed and what a walk sees are tuples with one entry
    for each child; so are residuals, unless the combinator keeps something of its own.
    """

    @property
    def children(self) -> tuple[Layer, ...]:
        """The layers it is made of, in the order of its params."""
        raise NotImplementedError(f"{type(self).__name__} must define children")

    def rebuild(self, children: tuple[Layer, ...]) -> Layer:
        """The same combinator of other children."""
        raise NotImplementedError(f"{type(self).__name__} must define rebuild(children)")

    @property
    def takes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All that its children take."""
        return tuple(sorted({name for child in self.children for name in child.takes}))

    @property
    def differentiates(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All that its children differentiate."""
        return tuple(sorted({name for child in self.children for name in child.differentiates}))

    @property
    def readers(self) -> tuple[tuple[int, Layer], ...]:
        """The children that x itself enters, with their index."""
        return tuple(enumerate(self.children))

    def hand(self, taken: Mapping[str, Any], index: int) -> dict[str, Any]:
        """What child `index` takes: a key, statistics, a state of its own, the rest as it came."""
        handed = {name: taken[name] for name in self.children[index].takes}
        if "key" in handed:
            handed["key"] = jax.random.fold_in(handed["key"], index)
        for name in NESTED:
            if handed.get(name) is not None:  # no state is a state of zeros, for every layer
                handed[name] = handed[name][index]
        return handed

    def readable(self, x: Any) -> Any:
        first, *others = (child.readable(x) for _, child in self.readers)
        return functools.reduce(jnp.logical_and, others, first)

    def check_values(self, x: np.ndarray, counted: np.ndarray) -> None:
        for index, child in self.readers:
            with within(index + 1, child):
                child.check_values(x, counted)

    def stand_in(self, name: str, x: Any) -> Any:
        """What the children that take it say: of a mask, the one for each step where one is."""
        if name == "statistics":
            raise NotImplementedError(
                f"{self!r} takes statistics: parameters are drawn by the network that is trained, "
                "network.init(key, x); network.inference() has the same ones."
            )
        if name == "state":
            return None
        each = [child.stand_in(name, x) for child in self.children if name in child.takes]
        return max(each, key=jnp.ndim)

    def backward(self, params: Tree, residuals: Tree, dout: jax.Array) -> tuple[Tree, jax.Array]:
        seen, dx = self.walk(backward_visit, dout, params, residuals)
        return tree_sharded_like(self.gather(seen), params), dx

    def backward_taken(
        self, params: Tree, residuals: Tree, dout: jax.Array
    ) -> tuple[Tree, jax.Array, dict[str, Tree]]:
        seen, dx = self.walk(taken_visit, dout, params, residuals)
        dparams, dtaken = gathered(self, seen)
        return tree_sharded_like(dparams, params), dx, dtaken

    def gather(self, dparams: Tree) -> Tree:
        return tuple(child.gather(each) for child, each in zip(self.children, dparams, strict=True))

    def gather_taken(self, dtaken: Tree) -> dict[str, Tree]:
        each = [child.gather_taken(seen) for child, seen in zip(self.children, dtaken, strict=True)]

        def total(name: str) -> Tree:
            first, *others = (one[name] for one in each if name in one)
            return sum(others, first)

        return {
            name: tuple(one.get(name, ()) for one in each) if name in NESTED else total(name)
            for name in self.differentiates
        }

    def observe(self, residuals: Tree) -> Tree:
        return tuple(
            child.observe(each) for child, each in zip(self.children, residuals, strict=True)
        )

    def inference(self) -> Layer:
        return self.rebuild(tuple(child.inference() for child in self.children))

    def walk(
        self, visit: Visit, dout: jax.Array, params: Tree, residuals: Tree, *others: Tree
    ) -> tuple[Tree, jax.Array]:
        raise NotImplementedError(
            f"{type(self).__name__} must define walk(visit, dout, params, residuals, *others): "
            "what it does with an error is not what one layer does"
        )

    def check(self, params: Tree, taken: Mapping[str, Any]) -> None:
        """Raise unless params has an entry for each child and taken is just what they take."""
        check_taken(self, taken)
        count = len(self.children)
        if not isinstance(params, tuple) or len(params) != count:
            given = type(params).__name__
            if isinstance(params, tuple | list):
                given += f" of {len(params)}"
            raise ValueError(
                f"{type(self).__name__} of {count} layers expected params as a tuple of {count}, "
                f"got a {given}. Make them with network.init(key, x)."
            )
        for name in NESTED:
            nested = taken.get(name)
            if nested is None and (name == "state" or name not in taken):
                continue
            # a layer's own State is a NamedTuple: its fields aren't entries for layers
            if type(nested) is not tuple or len(nested) != count:
                given = type(nested).__name__
                if isinstance(nested, tuple | list):
                    given += f" of {len(nested)}"
                raise ValueError(
                    f"{name} must be nested like the network: a tuple of {count}, as "
                    f"manual_pass(...).observed is; got a {given}."
                )
            for index, (child, each) in enumerate(zip(self.children, nested, strict=True)):
                # what is observed holds statistics beside states: BatchNorm's are let pass
                idle = name not in child.takes and type(child).observe is Layer.observe
                if name == "state" and idle and jax.tree.leaves(each):
                    raise ValueError(
                        f"state: there are arrays at {index}, for {child!r}, which takes no "
                        "state. Nest it as manual_pass(...).observed is, with () there."
                    )


class Loss(Setting):
    """How far a prediction is from its target, and the error that starts the backward pass.

    `value` is the loss of each prediction, summed over its units and over nothing else: only so is
    its derivative the notes' dZ[L] = A[L] - Y. Averaging over examples is `weights`' business.
    """

    parametric: ClassVar[bool] = False
    """Whether it has parameters of its own: then params are the pair (network's, loss's)."""

    def init(self, key: jax.Array, prediction: Any) -> Tree:
        """Draw the loss's own parameters, () if it has none."""
        del key, prediction
        return ()

    def borrow(self, params: Tree) -> Tree:
        """The loss's params where they are some of the network's, () where none are."""
        del params
        return ()

    def repay(self, grads: Tree, dparams: Tree) -> Tree:
        """The network's gradients with those of what was borrowed added."""
        del dparams
        return grads

    def activate(self, prediction: jax.Array) -> jax.Array:
        """The output activation whose pair with this loss has the error A[L] - Y."""
        return prediction

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """Loss of each prediction, (m,) or (m, T)."""
        raise NotImplementedError(f"{type(self).__name__} must define value(prediction, target)")

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """∂(Σ value)/∂prediction, the notes' dZ[L]; no 1/m in it."""
        raise NotImplementedError(f"{type(self).__name__} must define error(prediction, target)")

    def counts(self, prediction: jax.Array, target: jax.Array) -> jax.Array | None:
        """Which predictions count, as booleans, (m,) or (m, T); None when all do."""
        del prediction, target
        return None

    def sweep(
        self, params: Tree, prediction: jax.Array, target: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, Tree, jax.Array]:
        """Values, dparams and dprediction of Σ weights · value, in one go.

        A loss that mixes examples or has parameters overrides it. A prediction of weight 0 gets
        an error of exactly 0, even where its own error is NaN.
        """
        del params
        error = self.error(prediction, target)
        w = weights.reshape(weights.shape + (1,) * (error.ndim - weights.ndim))
        return self.value(prediction, target), (), jnp.where(w == 0, 0, w * error)

    def check(self, prediction: Any, target: Any) -> None:
        """Raise unless shapes and dtypes are right; called when a computation is traced."""
        del prediction, target

    def check_target(self, units: int, target: Any, counted: Any) -> None:
        """Raise unless concrete targets are right; called outside jit, on NumPy arrays.

        Args:
            units: size of the prediction's last axis.
            target: the targets.
            counted: booleans, which of the predictions have a weight other than 0.
        """
        del units, target, counted


def output_shape(layer: Layer, params: Tree, x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what the layer makes of inputs like x; nothing is computed."""
    taken = {name: layer.stand_in(name, x) for name in layer.takes}
    return jax.eval_shape(lambda *given: layer.forward(*given, **taken)[0], params, x)


def check_taken(layer: Layer | None, taken: Mapping[str, Any]) -> None:
    """Raise a TypeError unless `taken` names exactly what the layer takes (None takes nothing)."""
    takes = () if layer is None else layer.takes
    missing = [name for name in takes if name not in taken]
    surplus = [name for name in taken if name not in takes]
    if not missing and not surplus:
        return
    wanted = ", ".join(takes) or "nothing"
    given = ", ".join(taken) or "nothing"
    advice = [f"pass {name}=..." for name in missing] + [f"leave out {name}" for name in surplus]
    raise TypeError(
        f"{layer or 'The MLP of the notes'} takes {wanted} beside params and x, but was given "
        f"{given}: "
        f"{', '.join(advice)}. (Training is `network`, inference is `network.inference()`: "
        "they may take different things.)"
    )


@contextmanager
def within(number: int, layer: Layer) -> Iterator[None]:
    """Say where an error arose, 'in layer 3, Dense(10): ...', once for each level of nesting."""
    try:
        yield
    except (TypeError, ValueError) as error:
        message = str(error)
        if not message.startswith(repr(layer)):  # most name their layer themselves
            message = f"{layer!r}: {message}"
        error.args = (f"in layer {number}, {message}",)
        raise


def no_gradient(x: Any) -> Any:
    """The gradient of integers, which is none: zeros of a dtype without bits, as JAX has it."""
    return np.zeros(x.shape, jax.dtypes.float0)


def accumulation_dtype(*arrays: Any) -> Any:
    """The dtype in which a sum over examples is taken: the arrays' own, at least float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def sum_over_examples(values: jax.Array, axes: int = 1, like: jax.Array | None = None) -> jax.Array:
    """Sum all but the last `axes` axes, accumulating in at least float32.

    Args:
        values: (..., C).
        axes: how many are left.
        like: the parameter whose gradient this is: the sum has its sharding and dtype.
    """
    leading = tuple(range(values.ndim - axes))
    total = values.sum(leading, dtype=accumulation_dtype(values))
    return total if like is None else sharded_like(total.astype(like.dtype), like)


def outer_over_examples(left: jax.Array, right: jax.Array, like: jax.Array) -> jax.Array:
    """Σ over examples of left rightᵀ: the notes' dZ A_prevᵀ, with the sharding and dtype of `like`.

    Args:
        left: (..., n_out), the errors.
        right: (..., n_in), the inputs, with the same leading axes.
        like: (n_out, n_in), the weights whose gradient this is.

    Returns:
        (n_out, n_in), accumulated in at least float32.
    """
    examples = tuple(range(left.ndim - 1))
    total = jnp.tensordot(
        left,
        right,
        (examples, examples),
        preferred_element_type=accumulation_dtype(left, right),
        out_sharding=as_divided(like, left, right),  # a mesh with Explicit axes asks for it
    )
    return total.astype(like.dtype)
