"""Convolution: the same small affine map at every place of an image, a sequence or a volume.

Written for one axis in space; along several, every index i, j, p and every setting is one for each
axis. x has n places, the kernel k, the stride is s, the dilation d, the padding (low, high); x is 0
outside of its places.

Forward, for each example:

    out[i, o] = Σ_p Σ_c x[s i + d p - low, c] W[p, c, o] + b[o]        0 ≤ i < n'
    n' = ⌊(n + low + high - d (k - 1) - 1) / s⌋ + 1

As everywhere in deep learning, this is a correlation: the filter is not flipped. "VALID" pads
nothing; "SAME" pads so that n' = ⌈n / s⌉, with the odd zero at the high end.

Backward, given dout:

    dx = dout, spread apart with s - 1 zeros between neighbours, correlated with the filter flipped
         in space and with its channels exchanged: stride 1, dilation d,
         padding (d (k - 1) - low, d (k - 1) - high + r)
    dW = x correlated with dout: examples are summed as channels were, the stride becomes the
         dilation and the dilation the stride, padding (low, high - r)
    db = Σ over examples and places of dout

where r = (n + low + high - d (k - 1) - 1) mod s is how many places at the high end, padding among
them, lie behind the last window: no output depends on them.

Derivation.  x[j, c] enters out[i, o] by W[p, c, o] wherever s i + d p - low = j, so

    dx[j, c] = Σ_{i,p: s i + d p - low = j} Σ_o dout[i, o] W[p, c, o]

Let e[s i] = dout[i] and e = 0 elsewhere: i is then no longer bound to j,

    dx[j, c] = Σ_p Σ_o e[j + low - d p, o] W[p, c, o]
             = Σ_q Σ_o e[j + d q - (d (k - 1) - low), o] W[k - 1 - q, c, o]      with q = k - 1 - p

which is the forward formula, of e: stride 1, dilation d, d (k - 1) - low zeros before it (a
negative number crops: those places of e meet only padding), the filter flipped, o summed where c
was. e has s (n' - 1) + 1 = n + low + high - d (k - 1) - r places; to make n of them takes d (k - 1)
more in all, so d (k - 1) - high + r zeros after it.

W[p, c, o] meets x[s i + d p - low, c] at every i of every example m, so

    dW[p, c, o] = Σ_m Σ_i x[m, d p + s i - low, c] dout[m, i, o]

the forward formula again, with p and i, and so d and s, exchanged; m is summed where c was. To make
k of them, x ends where the last window ends, r places early: high - r.

With groups, x's channels and the features are divided into as many parts, and part g of the
features sees part g of the channels alone: each formula holds within each part. Depthwise is
groups = channels.

Backward keeps x alone.

Shapes  x, dx: (m, *space, C); W: (*kernel, C / groups, O); b: (O,); out, dout: (m, *space', O)
Source  LeCun, Boser, Denker et al. (1989), Backpropagation applied to handwritten zip code
        recognition; Dumoulin & Visin (2016), arXiv:1603.07285, for the arithmetic of padding
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layer import Layer, check_taken, sum_over_examples
from manual_bp.layers._correlation import (
    Padding,
    Sizes,
    check_count,
    check_input,
    check_params,
    check_settings,
    check_sizes,
    correlate,
    per_axis,
)
from manual_bp.sharding import beside, whole


class Params(NamedTuple):
    """W: (*kernel, C / groups, O), b: (O,), or () without a bias."""

    W: Any
    b: Any


class Residuals(NamedTuple):
    """x: (m, *space, C), the layer's input."""

    x: jax.Array


class Axis(NamedTuple):
    """The settings along one axis in space, and what follows from them."""

    n: int
    k: int
    s: int
    d: int
    low: int
    high: int

    @property
    def span(self) -> int:
        """d (k - 1), from the first place of a window to its last."""
        return self.d * (self.k - 1)

    @property
    def outputs(self) -> int:
        """n', how many places the window takes."""
        return (self.n + self.low + self.high - self.span - 1) // self.s + 1

    @property
    def rest(self) -> int:
        """r, the places behind the last window."""
        return (self.n + self.low + self.high - self.span - 1) % self.s


@dataclass(frozen=True)
class Conv(Layer):
    """out[i] = Σ_p x[s i + d p - low] W[p] + b, along one, two or three axes in space.

    Weights are drawn from a normal distribution cut off at two of its standard deviations, rescaled
    to variance 2 / (inputs of one output), for the relu that mostly follows (He et al., 2015);
    biases are 0.

    Args:
        features: O, the number of features at each place.
        kernel: its size along each axis in space, and so their number: (3, 3) is for images
            (m, height, width, channels); an int, or (3,), is for sequences (m, time, channels).
        stride: how far the window moves, for each axis; an int stands for every axis.
        padding: "SAME", "VALID", or a pair (low, high) for each axis: how many zeros are put before
            and after. A causal sequence layer has padding=((dilation * (kernel - 1), 0),).
        dilation: the distance between neighbours in the window; an int stands for every axis.
        groups: the parts into which channels and features are divided, each seeing its own alone.
        bias: whether b is added.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for settings that don't go together, and for shapes that don't fit.

    Source: LeCun, Boser, Denker et al. (1989).

    Example:
        >>> layer = Conv(8, (3, 3), stride=2)
        >>> x = jnp.ones((5, 28, 28, 1))
        >>> params = layer.init(jax.random.key(0), x)
        >>> out, residuals = layer.forward(params, x)
        >>> dparams, dx = layer.backward(params, residuals, jnp.ones_like(out))
        >>> out.shape, dparams.W.shape, dparams.b.shape, dx.shape
        ((5, 14, 14, 8), (3, 3, 1, 8), (8,), (5, 28, 28, 1))
    """

    features: int
    kernel: Sizes
    stride: Sizes = field(default=1, kw_only=True)
    padding: Padding = field(default="SAME", kw_only=True)
    dilation: Sizes = field(default=1, kw_only=True)
    groups: int = field(default=1, kw_only=True)
    bias: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_settings(self)
        check_sizes(self, "dilation", self.dilation, len(per_axis(self.kernel)))
        check_count(self, "groups", self.groups)
        if self.features % self.groups:
            raise ValueError(
                f"{self!r}: features must be a multiple of groups, got {self.features} features "
                f"in {self.groups} groups."
            )

    def init(self, key: jax.Array, x: Any) -> Params:
        check_input(self, x)
        self._check_groups(x)
        he = jax.nn.initializers.he_normal(in_axis=-2, out_axis=-1)  # counts the kernel's places
        shape = (*per_axis(self.kernel), x.shape[-1] // self.groups, self.features)
        return Params(
            he(key, shape, x.dtype), jnp.zeros(self.features, x.dtype) if self.bias else ()
        )

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        check_params(self, params, x, self.groups)
        axes = self._axes(x)
        out = correlate(
            x,
            params.W,
            ("NSC", "SIO", "NSC"),
            stride=[axis.s for axis in axes],
            padding=[(axis.low, axis.high) for axis in axes],
            dilation=[axis.d for axis in axes],
            groups=self.groups,
        )
        if self.bias:
            out = out + beside(params.b, out)  # before out is rounded
        return out.astype(jnp.result_type(x, *jax.tree.leaves(params))), Residuals(x)

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        W, x = params.W, residuals.x
        axes = self._axes(x)
        dx = correlate(
            dout,
            self._flipped(whole(W)),
            ("NSC", "SOI", "NSC"),  # exchanged by name: nothing moves, on a mesh neither
            spread=[axis.s for axis in axes],
            padding=[(axis.span - axis.low, axis.span - axis.high + axis.rest) for axis in axes],
            dilation=[axis.d for axis in axes],
            groups=self.groups,
            like=x,
        )
        dW = correlate(
            x,
            dout,
            (
                "CSN",
                "ISO",
                "SNC",
            ),  # x's channels take the place of examples, its examples that of C
            stride=[axis.d for axis in axes],
            padding=[(axis.low, axis.high - axis.rest) for axis in axes],
            dilation=[axis.s for axis in axes],
            example_groups=self.groups,  # rather than groups: so XLA knows the form on GPUs
            like=W,
        )
        db = sum_over_examples(dout, like=params.b) if self.bias else ()
        return Params(dW.astype(W.dtype), db), dx.astype(x.dtype)

    def windows(self, x: jax.Array) -> jax.Array:
        """What each place of out sees of x: (m, places, groups, K C / groups), K the kernel's size.

        out is windows Wᵀ + b, with W[p, c, o] as a row for each o: what a convolution is of a
        dense layer. Args: x, (m, *space, C).
        """
        axes = self._axes(x)
        padded = jnp.pad(x, ((0, 0), *((axis.low, axis.high) for axis in axes), (0, 0)))
        slices = []
        for place in np.ndindex(*(axis.k for axis in axes)):
            starts = [axis.d * p for axis, p in zip(axes, place, strict=True)]
            inside = tuple(
                slice(start, start + axis.s * (axis.outputs - 1) + 1, axis.s)
                for axis, start in zip(axes, starts, strict=True)
            )
            slices.append(
                padded[:, *inside].reshape(len(x), -1, self.groups, 1, x.shape[-1] // self.groups)
            )
        seen = jnp.concatenate(slices, axis=3)  # (m, places, groups, K, C / groups)
        return seen.reshape(*seen.shape[:3], -1)

    def from_windows(self, seen: jax.Array, x: jax.Array) -> jax.Array:
        """The transpose of `windows`: what each window has at a place of x, summed there.

        dx is this of dout W, the errors of what each window sees.

        Args:
            seen: (m, places, groups, K C / groups).
            x: (m, *space, C), for its shape.

        Returns:
            (m, *space, C).
        """
        axes = self._axes(x)
        places = tuple(axis.outputs for axis in axes)
        kernel = tuple(axis.k for axis in axes)
        each = seen.reshape(len(x), *places, self.groups, math.prod(kernel), -1)
        total = jnp.zeros(x.shape, seen.dtype)
        for number, place in enumerate(np.ndindex(kernel)):
            at_place = each[..., number, :].reshape(len(x), *places, x.shape[-1])
            around = []  # zeros before, after and between: i is brought to s i + d p - low
            for axis, p in zip(axes, place, strict=True):
                first = axis.d * p - axis.low
                last = first + axis.s * (axis.outputs - 1)
                around.append((first, x.shape[1 + len(around)] - 1 - last, axis.s - 1))
            zero = jnp.zeros((), seen.dtype)
            total += jax.lax.pad(at_place, zero, ((0, 0, 0), *around, (0, 0, 0)))
        return total

    def _flipped(self, W: jax.Array) -> jax.Array:
        """W[k - 1 - q, c, o] as (q, c, o), c of all groups, o of one: (*kernel, C, O / groups)."""
        *kernel, c, features = W.shape
        by_group = W.reshape(*kernel, c, self.groups, features // self.groups)
        of_all = jnp.swapaxes(by_group, -3, -2).reshape(*kernel, self.groups * c, -1)
        return jnp.flip(of_all, range(len(kernel)))  # last: so XLA knows the form on GPUs

    def _axes(self, x: Any) -> list[Axis]:
        rank = len(per_axis(self.kernel))
        sizes = zip(
            x.shape[1:-1],
            per_axis(self.kernel),
            per_axis(self.stride, rank),
            per_axis(self.dilation, rank),
            strict=True,
        )
        return [
            self._check_output(Axis(*each, *self._padding(place, *each)), x)
            for place, each in enumerate(sizes)
        ]

    def _padding(self, place: int, n: int, k: int, s: int, d: int) -> tuple[int, int]:
        """(low, high) along one axis."""
        if not isinstance(self.padding, str):
            return self.padding[place]
        if self.padding == "VALID":
            return 0, 0
        outputs = -(-n // s)
        total = max(s * (outputs - 1) + d * (k - 1) + 1 - n, 0)
        return total // 2, total - total // 2

    def _check_output(self, axis: Axis, x: Any) -> Axis:
        if axis.outputs < 1:
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, too small for the window, which spans "
                f"{axis.span + 1} places where x has {axis.n} and padding adds "
                f"{axis.low + axis.high}: nothing would come out. Use a smaller kernel or "
                'dilation, or padding="SAME".'
            )
        return axis

    def _check_groups(self, x: Any) -> None:
        if x.shape[-1] % self.groups:
            raise ValueError(
                f"{self!r}: x has {x.shape[-1]} channels, expected a multiple of "
                f"groups={self.groups}."
            )
