"""Transposed convolution: each input paints the filter into a larger image.

Written for one axis in space; along several, every index i, j, p and every setting is one for each
axis. x has n places, the kernel k, the stride is s.

Forward, for each example: x is spread apart, e[s i] = x[i] with s - 1 zeros between neighbours,
padded with (low, high) zeros, and correlated with the filter:

    out[j, o] = Σ_p Σ_c e[j + p - low, c] W[p, c, o] + b[o]        0 ≤ j < n'
              = Σ_{i,p: s i = j + p - low} Σ_c x[i, c] W[p, c, o] + b[o]

    padding          n'                                  (low, high)
    (low, high)      s (n - 1) + 1 + low + high - (k - 1)
    "VALID"          s n + max(k - s, 0)                 (k - 1, max(k, s) - 1)
    "SAME"           s n                                 (⌈(k + s - 2) / 2⌉, ⌊(k + s - 2) / 2⌋),
                                                         or (k - 1, s - 1) where s ≥ k

As in jax.lax.conv_transpose and flax.linen.ConvTranspose, by default: the filter (*kernel, C, O) is
not flipped, and pairs are the padding of e itself. So at stride 1, with the same
pairs, this is Conv; but "VALID" pads by k - 1 here, and "SAME" puts the odd zero before. What other
libraries call a transposed convolution, the dx of a Conv, is this with the filter flipped in space.

Backward, given dout:

    dx = dout correlated with the filter flipped in space and with its channels exchanged, stride s,
         padding (k - 1 - low, k - 1 - high)
    dW = dout correlated with x, flipped in space: examples are summed as channels were, the stride
         becomes the dilation, the same padding
    db = Σ over examples and places of dout

Derivation.  x[i, c] enters out[j, o] by W[p, c, o] where j = s i - p + low, for each p, so

    dx[i, c] = Σ_p Σ_o dout[s i - p + low, o] W[p, c, o]
             = Σ_q Σ_o dout[s i + q - (k - 1 - low), o] W[k - 1 - q, c, o]      with q = k - 1 - p

a correlation like any other, with stride s and k - 1 - low zeros before dout; less than none where
low > k - 1: then the first outputs, made of padding alone, are cropped. k - 1 - high after it make
n of them: s (n - 1) + k = n' + 2 (k - 1) - low - high. By the same indices

    dW[k - 1 - q, c, o] = Σ_m Σ_i dout[m, q + s i - (k - 1 - low), o] x[m, i, c]

in which q is what moves and i what is summed, with steps of s: the dilation.

Backward keeps x alone.

Shapes  x, dx: (m, *space, C); W: (*kernel, C, O); b: (O,); out, dout: (m, *space', O)
Source  Zeiler, Krishnan, Taylor & Fergus (2010), Deconvolutional networks; Dumoulin & Visin (2016),
        arXiv:1603.07285
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.layer import Layer, check_taken, sum_over_examples
from manual_bp.layers._correlation import (
    Padding,
    Sizes,
    check_input,
    check_params,
    check_settings,
    correlate,
    per_axis,
)
from manual_bp.sharding import beside, whole


class Params(NamedTuple):
    """W: (*kernel, C, O), b: (O,), or () without a bias."""

    W: Any
    b: Any


class Residuals(NamedTuple):
    """x: (m, *space, C), the layer's input."""

    x: jax.Array


@dataclass(frozen=True)
class ConvTranspose(Layer):
    """out[j] = Σ over s i = j + p - low of x[i] W[p] + b, along one, two or three axes in space.

    Weights are drawn from a normal distribution cut off at two of its standard deviations, rescaled
    to variance 2 / (inputs of one output), for the relu that mostly follows (He et al., 2015);
    biases are 0. An output sees one in `stride` of the kernel's places, along each
    axis.

    Args:
        features: O, the number of features at each place.
        kernel: its size along each axis in space, and so their number: (3, 3) is for images
            (m, height, width, channels); an int, or (3,), is for sequences (m, time, channels).
        stride: how far apart inputs are put, for each axis; an int stands for every axis.
        padding: "SAME", "VALID", or a pair (low, high) for each axis: how many zeros are put before
            and after the inputs, spread apart.
        bias: whether b is added.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for settings that don't go together, and for shapes that don't fit.

    Source: Zeiler, Krishnan, Taylor & Fergus (2010).

    Example:
        >>> layer = ConvTranspose(8, (4, 4), stride=2)
        >>> x = jnp.ones((5, 7, 7, 3))
        >>> params = layer.init(jax.random.key(0), x)
        >>> out, residuals = layer.forward(params, x)
        >>> dparams, dx = layer.backward(params, residuals, jnp.ones_like(out))
        >>> out.shape, dparams.W.shape, dparams.b.shape, dx.shape
        ((5, 14, 14, 8), (4, 4, 3, 8), (8,), (5, 7, 7, 3))
    """

    features: int
    kernel: Sizes
    stride: Sizes = field(default=1, kw_only=True)
    padding: Padding = field(default="SAME", kw_only=True)
    bias: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_settings(self)

    def init(self, key: jax.Array, x: Any) -> Params:
        check_input(self, x)
        kernel = per_axis(self.kernel)
        # He counts all places of the kernel; an output sees one in `apart` of them.
        he = jax.nn.initializers.he_normal(in_axis=-2, out_axis=-1)
        apart = math.prod(min(k, s) for k, s in zip(kernel, self._strides(), strict=True))
        W = math.sqrt(apart) * he(key, (*kernel, x.shape[-1], self.features), x.dtype)
        return Params(W, jnp.zeros(self.features, x.dtype) if self.bias else ())

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        check_params(self, params, x)
        self._check_output(x)
        out = correlate(
            x, params.W, ("NSC", "SIO", "NSC"), spread=self._strides(), padding=self._padding()
        )
        if self.bias:
            out = out + beside(params.b, out)  # before out is rounded
        return out.astype(jnp.result_type(x, *jax.tree.leaves(params))), Residuals(x)

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        W, x = params.W, residuals.x
        strides, kernel = self._strides(), per_axis(self.kernel)
        space = range(len(kernel))
        padding = [
            (k - 1 - low, k - 1 - high)
            for k, (low, high) in zip(kernel, self._padding(), strict=True)
        ]
        flipped_and_exchanged = jnp.flip(jnp.swapaxes(whole(W), -2, -1), space)
        dx = correlate(
            dout,
            flipped_and_exchanged,
            ("NSC", "SIO", "NSC"),
            stride=strides,
            padding=padding,
            like=x,
        )
        # dout's features take the place of examples, its examples that of the channels summed.
        dW = correlate(dout, x, ("CSN", "ISO", "SCN"), dilation=strides, padding=padding, like=W)
        dW = jnp.flip(dW, space).astype(W.dtype)
        db = sum_over_examples(dout, like=params.b) if self.bias else ()
        return Params(dW, db), dx.astype(x.dtype)

    def _strides(self) -> tuple[int, ...]:
        return per_axis(self.stride, len(per_axis(self.kernel)))

    def _padding(self) -> list[tuple[int, int]]:
        """(low, high) along each axis, around the inputs spread apart."""
        if not isinstance(self.padding, str):
            return list(self.padding)
        pairs = []
        for k, s in zip(per_axis(self.kernel), self._strides(), strict=True):
            if self.padding == "VALID":
                pairs.append((k - 1, max(k, s) - 1))
            else:
                low = k - 1 if s >= k else (k + s - 1) // 2
                pairs.append((low, k + s - 2 - low))
        return pairs

    def _check_output(self, x: Any) -> None:
        sizes = zip(
            x.shape[1:-1], per_axis(self.kernel), self._strides(), self._padding(), strict=True
        )
        for n, k, s, (low, high) in sizes:
            if s * (n - 1) + 1 + low + high < k:
                raise ValueError(
                    f"{self!r}: x has shape {tuple(x.shape)}, too small for a kernel of {k}: "
                    f"spread apart and padded {n} places become {s * (n - 1) + 1 + low + high}. "
                    'Use a smaller kernel, more padding, or padding="VALID", which crops nothing.'
                )
