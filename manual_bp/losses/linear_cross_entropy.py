"""Linear cross-entropy: the last linear layer and softmax cross-entropy as one, in chunks.

For features h ∈ R^F and an integer class k, with y_c = (1 - α)[c = k] + α/C (label smoothing α):

    z = W h (+ b)                           logits; with a soft cap s:  z = s tanh((W h + b) / s)
    log Z = log Σ_c e^{z_c},  p = e^z / Z = softmax(z)
    value = log Z - Σ_c y_c z_c + ζ (log Z)²                    ζ (log Z)² is the z-loss

Backward, given the weight w of each prediction:

    e  = ∂(w value)/∂z = w (p (1 + 2ζ log Z) - y)
    dz = e ⊙ (1 - (z/s)²)                   dz = e without a soft cap
    dh = Wᵀ dz
    dW = Σ over predictions of dz hᵀ,  db = Σ over predictions of dz

Derivation.  ∂log Z/∂z = p, so the three terms of value give p, -y and 2ζ log Z p; e is the error of
softmax cross-entropy when ζ = 0. s tanh' = s (1 - tanh²)/s = 1 - (z/s)². The rest is a dense layer.

In chunks.  N predictions have N C logits, more than all else together when C is a vocabulary. But
the loss of a prediction needs its own logits alone, and J is a sum: so the weight w, hence the
error, is known as soon as the logits are. Forward and backward are one loop over chunks of
predictions:

    z = W hᵀ of the chunk;  Z;  e;  dW += dz h,  dh = dzᵀ W

Each of the three products is taken once, as in the plain derivation; nothing is computed again but
e^z. Only one chunk's logits are held, as classes x predictions, as in the notes. Within a chunk the
backward half goes through blocks of classes, so that dz and the block's share of dW, which is added
to dW in place, are small too. The plain derivation is `Dense(C)` below `SoftmaxCrossEntropy()`: the
same loss and gradients, with all N C logits held twice.

On a mesh with Explicit axes each device runs the loop over predictions of its own, divided along
the axes that divide them or W; W is gathered, and the devices' dW are added once, after the loop.
So it is inside shard_map, where the caller adds. With Auto axes XLA divides the loop by itself: a
chunk is then spread over devices, or every device takes every chunk. That is right, but slow.

A prediction of the ignored class has value and error 0 and doesn't count; a class outside
0 ... C-1 has value and error NaN.

Shapes  prediction h, dh: (..., F); target: integers (...); value, w: (...); W, dW: (C, F); b: (C,)
Source  Bridle (1990), Probabilistic interpretation of feedforward classification network outputs;
        Chowdhery et al. (2022), arXiv:2204.02311 (z-loss); Gemma Team (2024), arXiv:2408.00118
        (soft cap); Hsu et al. (2024), arXiv:2410.10989, and Wijmans et al. (2024),
        arXiv:2411.09009 (in chunks)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating, check_number
from manual_bp.activations import identity
from manual_bp.layer import Loss, Tree, accumulation_dtype
from manual_bp.losses._targets import (
    check_classes,
    check_classes_exist,
    check_ignored_class,
    counted_classes,
    widened,
)
from manual_bp.paths import Path, at, is_path, replaced
from manual_bp.sharding import (
    axes_of,
    beside,
    by_rows,
    divided,
    over_parts,
    reshape,
    sharded_like,
    together,
    whole,
    zeros,
)

CHUNK_BYTES = 2**24
"""What a chunk's logits take in float32, at most."""
FEWEST = 64
"""Predictions in a chunk, however many classes: dW is read and written once for each chunk. More
are a multiple of it: matrix products are fastest at such sizes."""
FEWEST_CLASSES = 256
"""Classes in a block, unless an eighth of all are fewer: each block takes a turn of a loop."""

BELOW_A_HEAD = (
    "This loss is the head: a network with a head of its own must leave it out, as "
    "gpt(..., head=False) and llama(..., head=False) do."
)


class Params(NamedTuple):
    """W: (classes, features), b: (classes,), or () without bias."""

    W: Any
    b: Any


@dataclass(frozen=True)
class LinearCrossEntropy(Loss):
    """log Σ e^z - Σ y z of z = W h, without ever holding the logits of all predictions.

    Params are the pair (network's, loss's): the network ends at the features h, the loss holds W.
    With `shared` the loss uses a W of the network's, such as an embedding's table; params are then
    the network's alone, and the gradient there is the sum of both.

    Args:
        classes: C, the rows of W.
        chunk: predictions in a chunk; fewer take less memory and more time. By default as many
            times 64 as have logits of 16 MiB in float32, but at least 64.
        soft_cap: s, so that logits stay within ±s; None for none.
        label_smoothing: α in [0, 1]: the share of the label that is spread evenly.
        ignored_class: targets of this class don't count; None when all do.
        z_loss: ζ, the coefficient of (log Z)²; 1e-4 in PaLM.
        bias: whether b is added.
        shared: where W is in the network's params: a path as `tied` takes them, (0, "W"). None when
            the loss has parameters of its own.

    Raises:
        TypeError, ValueError: for settings out of range; for params, features or targets of the
            wrong shape or type; for a path that leads nowhere.

    Source: Hsu et al. (2024), arXiv:2410.10989.

    Example:
        >>> network, loss = sequential(Dense(8, tanh)), LinearCrossEntropy(1000, chunk=2)
        >>> x, y = jnp.ones((4, 3)), jnp.array([0, 999, 7, 7])
        >>> own = network.init(jax.random.key(0), x)
        >>> params = own, loss.init(jax.random.key(1), jnp.ones((4, 8)))
        >>> _, dparams = manual_grads(params, x, y, network=network, loss=loss)
        >>> dparams.W.shape
        (1000, 8)
    """

    classes: int
    chunk: int | None = field(default=None, kw_only=True)
    soft_cap: float | None = field(default=None, kw_only=True)
    label_smoothing: float = field(default=0.0, kw_only=True)
    ignored_class: int | None = field(default=None, kw_only=True)
    z_loss: float = field(default=0.0, kw_only=True)
    bias: bool = field(default=False, kw_only=True)
    shared: Path | None = field(default=None, kw_only=True)

    layout: ClassVar[str] = "cf"
    """The axes of W, classes and features, as einsum has them."""

    def __post_init__(self) -> None:
        for name, size in (("classes", self.classes), ("chunk", self.chunk)):
            if name == "chunk" and size is None:
                continue
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise TypeError(f"LinearCrossEntropy: {name} must be a positive int, got {size!r}.")
        kind = "LinearCrossEntropy"
        check_number(
            f"{kind}: label_smoothing",
            self.label_smoothing,
            "a number in [0, 1]",
            lambda share: 0 <= share <= 1,
        )
        if self.soft_cap is not None:
            wanted = "a positive number, or None for no cap"
            check_number(f"{kind}: soft_cap", self.soft_cap, wanted, lambda cap: cap > 0)
        check_number(f"{kind}: z_loss", self.z_loss, "0 or a positive number", lambda z: z >= 0)
        check_ignored_class(kind, self.ignored_class)
        if not isinstance(self.bias, bool):
            raise TypeError(f"{kind}: bias must be True or False, got {self.bias!r}.")
        if self.shared is not None and not is_path(self.shared):
            raise TypeError(
                "LinearCrossEntropy: shared must be a path into the network's params, a tuple of "
                f'indices and names of fields as in (0, "W"); got {self.shared!r}.'
            )
        if self.shared is not None and self.bias:
            raise TypeError(
                "LinearCrossEntropy: with shared all parameters are the network's, and a bias "
                "isn't among them; leave out bias=True."
            )

    @property
    def parametric(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether it has parameters of its own: unless it shares the network's."""
        return self.shared is None

    def init(self, key: jax.Array, prediction: Any) -> Tree:
        if self.shared is not None:
            return ()
        check_floating(self, prediction)
        shape, dtype = (self.classes, prediction.shape[-1]), prediction.dtype
        b = jnp.zeros(self.classes, dtype) if self.bias else ()
        return Params(identity.initializer(key, shape, dtype), b)

    def borrow(self, params: Tree) -> Tree:
        if self.shared is None:
            return ()
        try:
            return Params(at(params, self.shared, self, "the network's"), ())
        except ValueError as error:
            if type(params) is not tuple or not _leads(params[:1], (0, *self.shared)):
                raise
            if len(params) == 2:
                raise TypeError(
                    f"{self!r} has no parameters of its own: params must be the network's alone, "
                    "got a pair (network's, loss's). Give its first half, params[0]."
                ) from None
            error.args = (f"{error} There is one at {(0, *self.shared)}. {BELOW_A_HEAD}",)
            raise

    def repay(self, grads: Tree, dparams: Tree) -> Tree:
        if self.shared is None:
            return grads
        total = at(grads, self.shared, self, "the network's") + dparams.W
        return replaced(grads, self.shared, total, self, "the network's")

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        raise TypeError(
            f"{self!r} needs its W: sweep(params, prediction, target, weights)[0] are the values."
        )

    def logits(self, params: Params, prediction: jax.Array) -> jax.Array:
        """z of all classes, (..., C): what a prediction is made of.

        Args:
            params: the loss's own, as `init` makes them, or as `borrow` finds them.
            prediction: h, (..., F).
        """
        self._check_params(params, prediction)
        z = by_rows(prediction, params.W)
        return self._capped(z + beside(params.b, z) if self.bias else z)

    def counts(self, prediction: jax.Array, target: jax.Array) -> jax.Array | None:
        return None if self.ignored_class is None else counted_classes(target, self.ignored_class)

    def sweep(
        self, params: Params, prediction: jax.Array, target: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, Tree, jax.Array]:
        """Values, dparams and dprediction of Σ weights · value, chunk by chunk.

        Under jit, what isn't used of the three isn't computed.
        """
        values, dparams, dh = self.wide_sweep(params, prediction, target, weights)
        dparams = jax.tree.map(lambda total, leaf: total.astype(leaf.dtype), dparams, params)
        return values, dparams, dh.astype(prediction.dtype)

    def wide_sweep(
        self, params: Params, prediction: jax.Array, target: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, Tree, jax.Array]:
        """The same, gradients in the dtype in which they are summed."""
        self._check_params(params, prediction)
        dtype = accumulation_dtype(prediction, params.W)
        h, target, w, valid, counts = self._in_a_row(prediction, target, weights.astype(dtype))
        # Each device of those that divide the predictions or W takes predictions of its own.
        every = together(axes_of(h)[0], *axes_of(params.W))
        h = divided(h, every, None)
        dparams, (dh, values) = over_parts(self._in_chunks, whole(params), h, target, w)
        dparams = jax.tree.map(sharded_like, dparams, params)
        values = jnp.where(valid, sharded_like(values, valid), jnp.nan)
        if counts is not None:
            values = jnp.where(counts, values, 0)
        dh = reshape(dh, prediction.shape, *axes_of(prediction))
        return reshape(values, weights.shape, *axes_of(prediction)[:-1]), dparams, dh

    def _in_chunks(
        self, params: Params, h: jax.Array, target: jax.Array, w: jax.Array
    ) -> tuple[Params, tuple[jax.Array, jax.Array]]:
        """dparams, and dh and the values of predictions in a row."""
        size, every = self._predictions(len(h)), (params, h, target, w)

        def chunk(carry: Any, first: jax.Array) -> tuple[Any, None]:
            dparams, dh, values = carry
            start, new = _part(first, size, len(h))
            rows = (_rows(each, start, size) for each in (h, target, w))
            dparams, dh_n, values_n = self._chunk(params, dparams, new, *rows)
            return (dparams, _put(dh, start, dh_n), _put(values, start, values_n)), None

        start = jax.tree.map(lambda leaf: zeros(leaf.shape, w.dtype, every), (params, h, w))
        firsts = jnp.arange(0, len(h), size)
        (dparams, dh, values), _ = jax.lax.scan(chunk, start, firsts)
        return dparams, (dh, values)

    def error_of_logits(
        self, params: Params, prediction: jax.Array, target: jax.Array, weights: jax.Array
    ) -> jax.Array:
        """dz of all predictions and classes at once, (..., C), with the weights in it.

        dW = Σ dz hᵀ: what each prediction adds to it.
        """
        self._check_params(params, prediction)
        params = whole(params)
        weights = weights.astype(accumulation_dtype(prediction, params.W))
        h, target, w, _, _ = self._in_a_row(prediction, target, weights)
        z, top, total, log_Z = self._normalised(params, h, w.dtype)
        y = self._smoothed(jnp.arange(self.classes)[:, None] == target, w.dtype)
        e = self._error(z - top, total, log_Z, y, w)
        dz = jnp.where(w != 0, self._through_cap(e, z), 0)
        return dz.T.reshape(*weights.shape, self.classes)

    def _in_a_row(
        self, prediction: jax.Array, target: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """(h, target, w, which targets are classes, which count), predictions as one axis."""
        examples, features = axes_of(prediction)[:1] * (prediction.ndim > 1), prediction.shape[-1]
        h = reshape(prediction, (weights.size, features), *examples)
        target = reshape(widened(target), (weights.size,), *examples)
        w, counts = reshape(weights, (weights.size,), *examples), self.counts(h, target)
        if counts is not None:
            target, w = jnp.where(counts, target, 0), jnp.where(counts, w, 0)
        valid = (target >= 0) & (target < self.classes)
        return h, target, jnp.where(valid | (w == 0), w, jnp.nan), valid, counts

    def _normalised(
        self, params: Params, h: jax.Array, dtype: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """z (C, predictions), its largest, Σ e^(z - largest) and log Z of each prediction."""
        z = jnp.einsum(f"{self.layout},nf->cn", params.W, h, preferred_element_type=dtype)
        z = self._capped(z + params.b[:, None] if self.bias else z)
        top = z.max(0)
        total = jnp.exp(z - top).sum(0)
        return z, top, total, top + jnp.log(total)

    def _chunk(
        self,
        params: Params,
        dparams: Params,
        new: jax.Array,
        h: jax.Array,
        target: jax.Array,
        w: jax.Array,
    ) -> tuple[Params, jax.Array, jax.Array]:
        """A chunk's share added to dparams, its dh and its values.

        Args:
            params: W and b.
            dparams: the gradients of the chunks before.
            new: (predictions,), which haven't been in the chunk before, and add to dparams.
            h: (predictions, F).
            target, w: (predictions,), classes and weights.
        """
        W, dtype = params.W, dparams.W.dtype
        z, top, total, log_Z = self._normalised(params, h, dtype)
        # h is left out of dW where its weight is 0: 0 · NaN would be NaN.
        added = jnp.where((new & (w != 0))[:, None], h, 0)
        size = self._block(*h.shape)
        low = jnp.result_type(h, W)  # the products' dtype
        of_classes = self.layout.index("c")

        def block(carry: Any, first: jax.Array) -> tuple[Any, None]:
            """The backward half, for the classes from `first` on."""
            dparams, dh, chosen = carry
            start, new_c = _part(first, size, self.classes)
            new_c = new_c[:, None]
            y = self._smoothed((start + jnp.arange(size))[:, None] == target, dtype)
            z_c = _rows(z, start, size)
            shifted = z_c - top
            chosen += jnp.where(new_c, y * shifted, 0).sum(0)
            e = self._error(shifted, total, log_Z, y, w)
            dz = jnp.where(new_c & (w != 0), self._through_cap(e, z_c), 0)
            db = _added(dparams.b, start, jnp.where(new, dz, 0).sum(1)) if self.bias else ()
            dz = dz.astype(low)
            dW = jnp.einsum(f"cn,nf->{self.layout}", dz, added, preferred_element_type=dtype)
            W_c = _rows(W, start, size, of_classes)
            dh += jnp.einsum(f"cn,{self.layout}->nf", dz, W_c, preferred_element_type=dtype)
            return (Params(_added(dparams.W, start, dW, of_classes), db), dh, chosen), None

        carry = dparams, zeros(h.shape, dtype, dparams, z), zeros(top.shape, dtype, dparams, z)
        firsts = jnp.arange(0, self.classes, size)
        (dparams, dh, chosen), _ = jax.lax.scan(block, carry, firsts)
        values = jnp.log(total) - chosen
        return dparams, dh, values + self.z_loss * log_Z**2 if self.z_loss else values

    def _error(
        self, shifted: jax.Array, total: jax.Array, log_Z: jax.Array, y: jax.Array, w: jax.Array
    ) -> jax.Array:
        """e = w (p (1 + 2ζ log Z) - y), of z less the largest one."""
        p = jnp.exp(shifted) / total
        return w * ((p * (1 + 2 * self.z_loss * log_Z) if self.z_loss else p) - y)

    def _capped(self, z: jax.Array) -> jax.Array:
        return z if self.soft_cap is None else self.soft_cap * jnp.tanh(z / self.soft_cap)

    def _through_cap(self, dz: jax.Array, z: jax.Array) -> jax.Array:
        if self.soft_cap is None:
            return dz
        t = z / self.soft_cap
        return dz * (1 - t) * (1 + t)

    def _smoothed(self, chosen: jax.Array, dtype: Any) -> jax.Array:
        """y, from which class each target is."""
        y = chosen.astype(dtype)
        if not self.label_smoothing:
            return y
        share = jnp.asarray(self.label_smoothing, dtype)
        return (1 - share) * y + share / self.classes

    def _predictions(self, count: int) -> int:
        """How many predictions a chunk has; matrix products are fastest at multiples of 8."""
        most = self.chunk or FEWEST * max(1, CHUNK_BYTES // (4 * FEWEST * self.classes))
        return min(most, count, 8 * -(-_evenly(count, most) // 8))

    def _block(self, predictions: int, features: int) -> int:
        """How many classes: dz and the share of dW take an eighth of what the chunk's logits do.

        With few predictions that would be few: then 256, or an eighth of all.
        """
        most = self.classes * predictions // (8 * (predictions + features))
        fewest = min(FEWEST_CLASSES, self.classes // 8)
        return _evenly(self.classes, max(1, most, fewest))

    def check(self, prediction: Any, target: Any) -> None:
        check_floating(self, prediction)
        check_classes(self, prediction, target, units=self.classes)

    def check_target(self, units: int, target: Any, counted: Any) -> None:
        del units  # the network's features: the classes are the loss's own
        advice = "" if self.ignored_class is not None else " or name it as ignored_class"
        check_classes_exist(self, self.classes, target, counted, self.ignored_class, advice)

    def _check_params(self, params: Any, prediction: Any) -> None:
        if not (hasattr(params, "W") and hasattr(params, "b")):
            raise TypeError(
                f"{self!r} expected params with fields W and b, got {type(params).__name__}. Make "
                "them with loss.init(key, prediction); params are the pair (network's, loss's)."
            )
        where = "W" if self.shared is None else f"W, the network's params at {self.shared},"
        if not hasattr(params.W, "shape") or not jnp.issubdtype(params.W.dtype, jnp.floating):
            given = params.W.dtype if hasattr(params.W, "dtype") else type(params.W).__name__
            raise TypeError(f"{self!r}: {where} must be a floating-point array, got {given}.")
        sizes = {"c": self.classes, "f": prediction.shape[-1]}
        expected = tuple(sizes[each] for each in self.layout)
        if params.W.shape != expected:
            advice = ""
            if params.W.shape == expected[::-1]:
                advice = " W.T would fit."
            elif prediction.shape[-1] == self.classes:
                advice = f" It has one for each class, as logits have. {BELOW_A_HEAD}"
            raise ValueError(
                f"{self!r}: {where} has shape {tuple(params.W.shape)}, expected {expected}, "
                f"{'a row' if self.layout == 'cf' else 'a column'} for each class.{advice}"
            )
        if not self.bias:
            if not isinstance(params.b, tuple):
                raise ValueError(f"{self!r}: params have a b, which bias=True would use; it is ().")
        elif getattr(params.b, "shape", None) != (self.classes,):
            given = tuple(params.b.shape) if hasattr(params.b, "shape") else params.b
            raise ValueError(f"{self!r}: b has shape {given}, expected ({self.classes},).")


def _leads(params: Tree, path: Path) -> bool:
    """Whether there is something at the path."""
    try:
        at(params, path, None, "")
    except ValueError:
        return False
    return True


def _evenly(count: int, most: int) -> int:
    """The size of parts of `count` things, at most so many in a part, as even as can be."""
    parts = -(-count // most)
    return -(-count // parts)


def _part(first: jax.Array, size: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Where the part from `first` on starts, and which of its rows are new.

    The last part starts early, so that it is as large as the others: its first rows have been in
    the part before.
    """
    start = jnp.minimum(first, count - size)
    return start, start + jnp.arange(size) >= first


def _rows(rows: jax.Array, start: jax.Array, size: int, axis: int = 0) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(rows, start, size, axis, allow_negative_indices=False)


def _added(total: jax.Array, start: jax.Array, part: jax.Array, axis: int = 0) -> jax.Array:
    """The total with this part added from row `start` on; in place, inside a scan."""
    return _put(total, start, _rows(total, start, part.shape[axis], axis) + part, axis)


def _put(rows: jax.Array, start: jax.Array, part: jax.Array, axis: int = 0) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(
        rows, part, start, axis, allow_negative_indices=False
    )
