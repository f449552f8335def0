"""The rules by which an error passes back through a layer's weights, in place of Wᵀ.

W is a matrix of the layer, dZ the error at what W makes, i an example, d the entries that one
example has in dx; e the first error of the pass, for the rule in `transport_direct`.

    Transport                 dx = dZ W                                     the truth
    FeedbackAlignment         dx = dZ B           B drawn once, shaped like W, and kept
    SignSymmetry              dx = dZ S           S = sign(W) ‖W‖ / √(entries of W)
    DirectFeedbackAlignment   dx = e B            B drawn once, from the first error to the input
    QuantizedErrors           dx_i = Q(dZ W)_i    Q(v) = (s / n) round(n v / s), s = max |v|,
                                                  n = 2^(bits-1) - 1
    NoisyErrors               dx_i = (dZ W)_i + scale ‖(dZ W)_i‖ / √d · ξ_i,     ξ ~ N(0, I)

With the matrices replaced.  FeedbackAlignment and SignSymmetry replace every matrix of a layer
wherever its transpose carries an error: of a dense or convolutional layer that is dx alone; of a
recurrent layer also Uᵀ through time, of attention Woᵀ before the softmax, of a gated MLP W_downᵀ
before the gate. There the replaced error is in the gradients of the inner matrices too. It is one
call of `layer.backward` with other matrices: no backward pass of the library uses its weights for
anything but to carry the error, since what forward made of them is in the residuals.

With the error replaced.  The other rules leave the inside of a layer true and replace the dx that
leaves it.

Q is symmetric, 0 stays 0 and the largest entry stays what it is. Its step is each example's own: an
example that is learnt has small errors, which the step of another one's would round to 0; and no
example's gradient depends on the others. Rounded to the nearest, ties to even, |Q(v) - v| ≤ s / 2n.
Stochastic, it rounds t = n v / s up with probability t - ⌊t⌋, so that E Q(v) = v.
Derivation.  E Q = (s/n) (⌊t⌋ + P(u < t - ⌊t⌋)) = (s/n) t = v, for u uniform on [0, 1).

Noise is as large as the error it is added to, times `scale`: E ‖noise_i‖² = scale² ‖dx_i‖², since ξ
has d entries of variance 1.

S has W's signs and, where no entry of W is 0, its length: ‖S‖² = Σ ‖W‖²/entries.

Shapes  B, S: as W; dx: as the layer's input
Sources Lillicrap, Cownden, Tweed & Akerman (2016), Random synaptic feedback weights support error
        backpropagation for deep learning; Nøkland (2016), arXiv:1609.01596; Liao, Leibo & Poggio
        (2016), arXiv:1510.05067; Gupta et al. (2015), arXiv:1502.02551 (stochastic rounding)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from manual_bp.activation import check_number
from manual_bp.gradients import open_params
from manual_bp.layer import Layer, Loss, Tree, accumulation_dtype
from manual_bp.signals.transport_contract import MAKE, Carried, Transport, entry, matrices


@dataclass(frozen=True)
class FeedbackAlignment(Transport):
    """dx = dZ B: random matrices, drawn as the weights are, in place of every W.

    Learning turns the forward weights towards B, until the errors that B carries are of use. Tied
    weights have one B in common. With the params themselves as feedback it is back-propagation.

    Source: Lillicrap, Cownden, Tweed & Akerman (2016).

    Example:
        >>> network, x = mlp([2, 5, 3]), jnp.ones((4, 2))
        >>> params = network.init(jax.random.key(0), x)
        >>> feedback = FeedbackAlignment().init(jax.random.key(1), params, x, network=network)
        >>> feedback[1].W.shape
        (3, 5)
    """

    takes: ClassVar[tuple[str, ...]] = ("feedback",)

    def init(self, key: jax.Array, params: Tree, x: Any, *, network: Layer | None = None) -> Tree:
        """Matrices shaped like the weights and drawn as the network draws them: network.init."""
        network, tree, _ = open_params(params, network, Loss())
        drawn = network.init(key, jax.ShapeDtypeStruct(x.shape, jnp.result_type(x)))
        if jax.tree.flatten(tree)[1] != jax.tree.flatten(drawn)[1]:
            raise ValueError(
                f"{self!r}: params aren't nested as {network!r} nests them. Give the network "
                "whose params these are, and params as network.init(key, x) makes them."
            )
        return jax.tree.map(lambda B, W: B.astype(W.dtype), drawn, tree)

    def backward(
        self, layer: Layer, params: Tree, residuals: Tree, dout: jax.Array, carried: Carried
    ) -> tuple[Tree, jax.Array]:
        feedback, fields = {}, params._asdict()
        for name in matrices(layer):
            B, shape = entry(self, layer, carried.feedback, name), fields[name].shape
            if B.shape != shape:
                raise ValueError(
                    f"{layer!r}: feedback has {name} of shape {B.shape}, expected {shape}, as the "
                    f"params have. {MAKE.format(self)}"
                )
            feedback[name] = B
        return layer.backward(params._replace(**feedback), residuals, dout)


@dataclass(frozen=True)
class SignSymmetry(Transport):
    """dx = dZ S, S = sign(W) ‖W‖ / √(entries of W): the signs are right, no size is.

    ‖W‖ is the root of the sum of squares, of each matrix by itself. S follows W as it learns.

    Source: Liao, Leibo & Poggio (2016), arXiv:1510.05067, who fix the sizes by batch normalisation.
    """

    def backward(
        self, layer: Layer, params: Tree, residuals: Tree, dout: jax.Array, carried: Carried
    ) -> tuple[Tree, jax.Array]:
        del carried
        fields = params._asdict()
        signs = {name: _signs(fields[name]) for name in matrices(layer)}
        return layer.backward(params._replace(**signs), residuals, dout)


@dataclass(frozen=True)
class QuantizedErrors(Transport):
    """dx_i = Q(dZ W)_i: each example's error in 2^bits - 1 steps, symmetric about 0.

    Args:
        bits: from 2 to 16; 8 unless given.
        stochastic: whether steps are rounded at random, so that the mean is right, or to the
            nearest. At random, `transport_key` is taken.

    Source: Gupta, Agrawal, Gopalakrishnan & Narayanan (2015), arXiv:1502.02551.
    """

    bits: int = 8
    stochastic: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or isinstance(self.bits, bool):
            raise TypeError(f"QuantizedErrors: bits must be an int, got {self.bits!r}.")
        if not 2 <= self.bits <= 16:
            raise ValueError(f"QuantizedErrors: bits must be from 2 to 16, got {self.bits}.")
        if not isinstance(self.stochastic, bool):
            raise TypeError(
                f"QuantizedErrors: stochastic must be True or False, got {self.stochastic!r}."
            )

    @property
    def takes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A key, if stochastic."""
        return ("transport_key",) if self.stochastic else ()

    def backward(
        self, layer: Layer, params: Tree, residuals: Tree, dout: jax.Array, carried: Carried
    ) -> tuple[Tree, jax.Array]:
        dparams, dx = layer.backward(params, residuals, dout)
        return dparams, self.rounded(dx, carried.key)

    def rounded(self, v: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Q(v), each example by itself.

        Example:
            >>> print(QuantizedErrors(3).rounded(jnp.array([[0.1, 0.4, -3.0], [0.1, 0.4, 0.0]])))
            [[ 0.          0.         -3.        ]
             [ 0.13333334  0.4         0.        ]]
        """
        n = 2 ** (self.bits - 1) - 1
        wide = v.astype(accumulation_dtype(v))
        s = jnp.abs(wide).max(tuple(range(1, v.ndim)), keepdims=True)
        s = jnp.maximum(s, jnp.finfo(s.dtype).tiny)  # that of zeros: not 0 / 0
        t = wide / s * n  # in this order: n itself where |v| is s
        if key is None:
            steps = jnp.round(t)
        else:
            below = jnp.floor(t)
            steps = below + (self.uniform(key, t) < t - below)
        return (steps / n * s).astype(v.dtype)

    def uniform(self, key: Any, like: jax.Array) -> jax.Array:
        """u: independent numbers, uniform on {0, 1, ..., 2³² - 1}/2³², in the shape of `like`."""
        return jax.random.bits(key, like.shape, jnp.uint32).astype(like.dtype) / 2.0**32


@dataclass(frozen=True)
class NoisyErrors(Transport):
    """dx_i = (dZ W)_i + scale ‖(dZ W)_i‖ / √d · ξ_i: Gaussian noise, in proportion to the error.

    Takes `transport_key`; noise is each example's, each layer's and each use's own.

    Args:
        scale: the noise's root mean square as a share of the error's.

    Source: Neelakantan et al. (2015), arXiv:1511.06807, who add noise of a fixed size to gradients.
    """

    takes: ClassVar[tuple[str, ...]] = ("transport_key",)

    scale: float

    def __post_init__(self) -> None:
        wanted = "0 or a positive number"
        check_number("NoisyErrors: scale", self.scale, wanted, lambda scale: scale >= 0)

    def backward(
        self, layer: Layer, params: Tree, residuals: Tree, dout: jax.Array, carried: Carried
    ) -> tuple[Tree, jax.Array]:
        dparams, dx = layer.backward(params, residuals, dout)
        wide = dx.astype(accumulation_dtype(dx))
        rms = jnp.sqrt(jnp.square(wide).mean(tuple(range(1, dx.ndim)), keepdims=True))
        return dparams, (wide + self.scale * rms * self.noise(carried.key, wide)).astype(dx.dtype)

    def noise(self, key: Any, like: jax.Array) -> jax.Array:
        """ξ: independent normal numbers of mean 0 and variance 1, in the shape of `like`."""
        return jax.random.normal(key, like.shape, like.dtype)


def _signs(W: jax.Array) -> jax.Array:
    """sign(W) ‖W‖ / √(entries of W)."""
    wide = W.astype(accumulation_dtype(W))
    return (jnp.sign(wide) * jnp.sqrt(jnp.square(wide).mean())).astype(W.dtype)
