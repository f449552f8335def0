"""Error transport, by autodiff of networks written out here, in which other matrices carry errors.

`carried` computes op(x, W), and autodiff of it finds op's derivative with W for W, but with B for
x: feedback alignment, for any op linear in each of the two. Direct feedback alignment is the
gradient of the objective with every layer's input held fixed, plus Σ <e B, input>. The other rules
are an identity before each product, whose derivative is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layer import Layer, Loss
from verify import specs
from verify.networks import Shape, prediction_shape
from verify.rules import BESIDE, Rule, flat, inputs, numbers, params_of_kind

fixed = jax.lax.stop_gradient
Carry = Callable[[Callable[..., Any], Any, Any, Any], Any]
"""carry(op, x, W, B) -> op(x, W), with a derivative of its own."""


def carried(op: Callable[..., Any], x: Any, W: Any, B: Any) -> Any:
    """op(x, W), whose derivative with respect to x is that of op(x, B)."""
    return fixed(op(x, W)) + op(x - fixed(x), fixed(B)) + op(fixed(x), W - fixed(W))


def plain(op: Callable[..., Any], x: Any, W: Any, B: Any) -> Any:
    """op(x, W): the truth."""
    return op(x, W)


def directly(e: Any, terms: list[Any]) -> Carry:
    """op(x, W) with x held fixed; what is to be its derivative goes into the terms to be added."""

    def carry(op: Callable[..., Any], x: Any, W: Any, B: Any) -> Any:
        each_position = x.shape[: e.ndim - 1] == e.shape[:-1]
        summed = 1 if each_position else e.ndim - 1
        terms.append(jnp.sum(fixed(jnp.tensordot(e, B, summed)) * x))
        return op(fixed(x), W)

    return carry


def signs(op: Callable[..., Any], x: Any, W: Any, B: Any) -> Any:
    """op(x, W), whose derivative with respect to x is that of op(x, sign(W) rms(W))."""
    return carried(op, x, W, jnp.sign(W) * jnp.sqrt(jnp.sum(W * W) / W.size))


def changed(rule: Callable[..., Any]) -> Callable[[Any], Carry]:
    """op(x, W), of whose derivative with respect to x `rule` makes something else.

    Args:
        rule: rule(dx, key) -> what becomes of it; key is that of the layer, whose number counts
            the parameters before it: each of two dense layers has two.
    """

    def carry_with(key: Any) -> Carry:
        calls: list[Any] = []

        def carry(op: Callable[..., Any], x: Any, W: Any, B: Any) -> Any:
            own = jax.random.fold_in(key, 2 * len(calls))
            same = jax.custom_vjp(lambda x: x)
            same.defvjp(lambda x: (x, None), lambda _, dx: (rule(dx, own),))
            calls.append(op)
            return op(same(x), W)

        return carry

    return carry_with


def _levels(dx: Any, bits: int) -> tuple[Any, Any]:
    """Every entry beside all levels that it may be rounded to: (m, entries, 1), (m, 1, levels)."""
    n = 2 ** (bits - 1) - 1
    rows = dx.reshape(len(dx), -1, 1)
    return rows, jnp.arange(-n, n + 1.0) * (jnp.max(jnp.abs(rows), axis=1, keepdims=True) / n)


def nearest(dx: Any, key: Any, bits: int = 3) -> Any:
    """Each entry as the nearest level of its example, the even one of two as near."""
    rows, levels = _levels(dx, bits)
    # The lowest level is -(2^(bits-1) - 1) steps: odd.
    odd, even = _closest(rows, levels[..., ::2]), _closest(rows, levels[..., 1::2])
    near = jnp.abs(rows[..., 0] - even) <= jnp.abs(rows[..., 0] - odd)
    return jnp.where(near, even, odd).reshape(dx.shape)


def _closest(rows: Any, levels: Any) -> Any:
    """The closest of these levels to each entry."""
    chosen = jnp.argmin(jnp.abs(rows - levels), -1)[..., None] == jnp.arange(levels.shape[-1])
    return jnp.where(chosen, levels, 0.0).sum(-1)


def either(dx: Any, key: Any, bits: int = 3) -> Any:
    """Each entry as the level below or above, by a uniform number, found by trying all of them."""
    rows, levels = _levels(dx, bits)
    u = (jax.random.bits(key, dx.shape, jnp.uint32) & 1).reshape(rows.shape) / 2.0
    step = levels[..., -1:] / (2 ** (bits - 1) - 1)
    steps_up = jnp.where(u * step < rows - levels[..., :-1], step, 0.0)  # one for each level below
    return (levels[..., 0] + steps_up.sum(-1)).reshape(dx.shape)


@dataclass(frozen=True)
class Halves(mbp.QuantizedErrors):
    """Random numbers so coarse that they meet the fractions that are rounded."""

    def uniform(self, key: Any, like: jax.Array) -> jax.Array:
        """0 or 1/2."""
        bits = jax.random.bits(key, like.shape, jnp.uint32) & 1
        return bits.astype(like.dtype) / 2


@dataclass(frozen=True)
class BitNoise(mbp.NoisyErrors):
    """Noise of bits alone, which every arithmetic has."""

    def noise(self, key: Any, like: jax.Array) -> jax.Array:
        """Uniform on [-1, 1)."""
        return jax.random.bits(key, like.shape, jnp.uint32).astype(like.dtype) / 2**31 - 1


def noisy(dx: Any, key: Any, scale: float = 0.5) -> Any:
    """Each entry with noise as large as a share of the example's root mean square."""
    rows = dx.reshape(len(dx), -1)
    rms = jnp.sqrt(jnp.sum(rows * rows, 1, keepdims=True) / rows.shape[1])
    noise = 2 * (jax.random.bits(key, dx.shape, jnp.uint32) / 2.0**32) - 1
    return dx + scale * (rms * noise.reshape(rows.shape)).reshape(dx.shape)


def dense(x: Any, W: Any) -> Any:
    """x Wᵀ."""
    return jnp.einsum("...i,oi->...o", x, W)


def valid(x: Any, W: Any) -> Any:
    """A correlation along one axis, without padding, window by window."""
    windows = [x[:, at : at + W.shape[0]] for at in range(x.shape[1] - W.shape[0] + 1)]
    return jnp.stack([jnp.einsum("mkc,kco->mo", window, W) for window in windows], 1)


def spread(x: Any, W: Any) -> Any:
    """The transposed one, of stride 2 and a kernel of 2: no output sees two inputs."""
    pairs = jnp.einsum("mtc,kco->mtko", x, W[::-1])
    return pairs.reshape(len(x), -1, W.shape[-1])


def mlp(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """Two dense layers with tanh between them."""
    a = jnp.tanh(carry(dense, x, params[0].W, B[0].W) + params[0].b)
    return carry(dense, a, params[1].W, B[1].W) + params[1].b


def relus(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """Three dense layers with relu between them."""
    for layer, feedback in zip(params[:-1], B[:-1], strict=True):
        x = jax.nn.relu(carry(dense, x, layer.W, feedback.W) + layer.b)
    return carry(dense, x, params[-1].W, B[-1].W) + params[-1].b


def convolutional(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """A transposed convolution, a convolution, relu, the mean over time, a dense layer."""
    a = carry(spread, x, params[0].W, B[0].W) + params[0].b
    a = jax.nn.relu(carry(valid, a, params[1].W, B[1].W) + params[1].b)
    return carry(dense, a.mean(1), params[4].W, B[4].W) + params[4].b


def stacked(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """x + tanh(x Wᵀ + b), twice, and a dense layer."""
    (((inner,),),) = (params[0],)
    (((other,),),) = (B[0],)
    for step in range(2):
        x = x + jnp.tanh(carry(dense, x, inner.W[step], other.W[step]) + inner.b[step])
    return carry(dense, x, params[1].W, B[1].W) + params[1].b


def tied(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """The same dense layer twice, with tanh after each."""
    ((layer, _),), ((first, second),) = params, B
    for other in (first, second if jax.tree.leaves(second) else first):
        x = jnp.tanh(carry(dense, x, layer.W, other.W) + layer.b)
    return x


def spread_apart(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """A dense layer, and a transposed convolution: the prediction has more steps than x."""
    a = carry(dense, x, params[0].W, B[0].W) + params[0].b
    return carry(spread, a, params[1].W, B[1].W) + params[1].b


def recurrent(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """An Elman network, step by step."""
    h = jnp.zeros((len(x), params.b.size))
    out = []
    for t in range(x.shape[1]):
        W, U = carry(dense, x[:, t], params.W, B.W), carry(dense, h, params.U, B.U)
        h = jnp.tanh(W + U + params.b)
        out.append(h)
    return jnp.stack(out, 1)


def lstm(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """An LSTM with gates i, f, g, o, step by step."""
    h = c = jnp.zeros((len(x), params.b.size // 4))
    out = []
    for t in range(x.shape[1]):
        W, U = carry(dense, x[:, t], params.W, B.W), carry(dense, h, params.U, B.U)
        i, f, g, o = jnp.split(W + U + params.b, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        out.append(h)
    return jnp.stack(out, 1)


def gru(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """A GRU whose reset gate comes after the product, step by step."""
    h = jnp.zeros((len(x), params.c.size))
    out = []
    for t in range(x.shape[1]):
        p_r, p_z, p_n = jnp.split(carry(dense, x[:, t], params.W, B.W) + params.b, 3, -1)
        q_r, q_z, q_n = jnp.split(carry(dense, h, params.U, B.U), 3, -1)
        z = jax.nn.sigmoid(p_z + q_z)
        n = jnp.tanh(p_n + jax.nn.sigmoid(p_r + q_r) * (q_n + params.c))
        h = (1 - z) * n + z * h
        out.append(h)
    return jnp.stack(out, 1)


def gated(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """SwiGLU."""
    gate = jax.nn.silu(carry(dense, x, params.W_gate, B.W_gate))
    up = carry(dense, x, params.W_up, B.W_up)
    return carry(dense, gate * up, params.W_down, B.W_down)


def attention(carry: Carry, params: Any, B: Any, x: Any) -> Any:
    """One head, every position reading all."""
    q, k, v = (
        carry(dense, x, W, other)
        for W, other in ((params.Wq, B.Wq), (params.Wk, B.Wk), (params.Wv, B.Wv))
    )
    read = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) * (1 / math.sqrt(q.shape[-1]))) @ v
    return carry(dense, read, params.Wo, B.Wo)


def angles(ours: Any, theirs: Any) -> Any:
    """Of each layer's params, in degrees: atan2(‖u ∧ v‖, u · v); of each step where stacked."""
    if hasattr(ours, "W"):
        steps = ours.b.shape[:-1]
        u, v = (
            jnp.concatenate([each.reshape(*steps, -1) for each in layer], -1)
            for layer in (ours, theirs)
        )
        wedge = u[..., :, None] * v[..., None, :] - v[..., :, None] * u[..., None, :]
        across = jnp.sqrt((wedge * wedge).sum((-1, -2)) / 2)
        one_of_zeros = (jnp.abs(u).max(-1) == 0) != (jnp.abs(v).max(-1) == 0)
        theta = jnp.arctan2(across, (u * v).sum(-1)) * (180 / np.pi)
        return jnp.where(one_of_zeros, 90.0, theta)
    return tuple(map(angles, ours, theirs))


Written = Callable[[Carry, Any, Any, Any], Any]
"""written(carry, params, B, x) -> prediction."""


class Case(NamedTuple):
    """A network beside the same one written out, with a rule beside the same as `carry`."""

    transport: mbp.Transport
    network: Layer
    written: Written
    carry: Callable[[Any], Carry]
    """carry(key) -> Carry."""
    loss: Loss
    shape: Shape
    exact: bool = False
    angles: bool = False
    omitted: Mapping[str, str] = MappingProxyType({})


MLP = mbp.mlp([3, 2, 2], hidden=mbp.tanh)
WIDE, SIXTHS = mbp.mlp([2, 3, 2]), mbp.mlp([2, 4, 1])
RELUS = mbp.mlp([2, 3, 2, 2])
CONVOLUTIONAL = mbp.sequential(
    mbp.ConvTranspose(2, 2, stride=2, padding="VALID"),
    mbp.Conv(2, 2, padding="VALID"),
    mbp.relu,
    mbp.GlobalAvgPool(),
    mbp.Dense(2),
)
SPREAD = mbp.sequential(mbp.Dense(2), mbp.ConvTranspose(1, 2, stride=2, padding="VALID"))
STACKED = mbp.sequential(mbp.stack(mbp.skip(mbp.Dense(2, mbp.tanh)), 2), mbp.Dense(2))
TIED = mbp.tied(mbp.sequential(mbp.Dense(2, mbp.tanh), mbp.Dense(2, mbp.tanh)), ((0,), (1,)))
ATTENTION = mbp.MultiHeadAttention(1, bias=False)
BACK, DIRECT, SIGNS = mbp.FeedbackAlignment(), mbp.DirectFeedbackAlignment(), mbp.SignSymmetry()
ROUNDED, AT_RANDOM = mbp.QuantizedErrors(3), Halves(3, stochastic=True)
SQUARED, SOFTMAX = mbp.SquaredError(), mbp.SoftmaxCrossEntropy()


def always(carry: Carry) -> Callable[[Any], Carry]:
    """A way to carry errors that needs no key."""
    return lambda key: carry


STEPS = {"L4 bounds": "where a number lies halfway between two steps, a bound reaches both"}
CASES = (
    Case(BACK, WIDE, relus, always(carried), SQUARED, (2, 2), angles=True),
    Case(BACK, MLP, mlp, always(carried), SOFTMAX, (3, 3)),
    Case(BACK, RELUS, relus, always(carried), SQUARED, (3, 2), exact=True),
    Case(BACK, CONVOLUTIONAL, convolutional, always(carried), SQUARED, (2, 2, 1), exact=True),
    Case(BACK, STACKED, stacked, always(carried), SOFTMAX, (2, 2)),
    Case(BACK, TIED, tied, always(carried), SQUARED, (2, 2)),
    Case(BACK, mbp.RNN(2), recurrent, always(carried), SQUARED, (2, 3, 2)),
    Case(BACK, mbp.LSTM(1), lstm, always(carried), SQUARED, (2, 2, 2)),
    Case(BACK, mbp.GRU(1), gru, always(carried), SQUARED, (2, 2, 2)),
    Case(BACK, mbp.GatedMLP(2), gated, always(carried), SQUARED, (2, 2)),
    Case(
        BACK, mbp.MultiHeadAttention(1, bias=False), attention, always(carried), SQUARED, (2, 2, 2)
    ),
    Case(SIGNS, MLP, mlp, always(signs), SOFTMAX, (2, 3)),
    Case(ROUNDED, SIXTHS, relus, changed(nearest), SQUARED, (2, 2), exact=True, omitted=STEPS),
    Case(AT_RANDOM, SIXTHS, relus, changed(either), SQUARED, (2, 2), exact=True, omitted=STEPS),
    Case(BitNoise(0.5), MLP, mlp, changed(noisy), SOFTMAX, (2, 3)),
    Case(DIRECT, RELUS, relus, always(carried), SQUARED, (3, 2), exact=True),
    Case(DIRECT, STACKED, stacked, always(carried), SOFTMAX, (2, 2)),
    Case(DIRECT, TIED, tied, always(carried), SQUARED, (2, 2)),
    Case(DIRECT, CONVOLUTIONAL, convolutional, always(carried), SQUARED, (2, 2, 1), exact=True),
    Case(DIRECT, mbp.mlp([2, 2, 2]), relus, always(carried), SQUARED, (2, 2, 2), exact=True),
    Case(DIRECT, SPREAD, spread_apart, always(carried), SQUARED, (2, 2, 1), exact=True),
)


def rules() -> list[Rule]:
    """Every rule of transport, through layers of every kind that has matrices."""
    return list(map(of_case, CASES))


def of_case(case: Case) -> Rule:
    """What `transported_pass` gives, and the same by autodiff of the network written out."""

    def manual(params: Any, B: Any, x: Any, y: Any, weights: Any, seed: Any) -> dict[str, Any]:
        takes: dict[str, Any] = {"feedback": B, "transport_key": jax.random.key(seed)}
        given = {name: takes[name] for name in case.transport.takes}
        settings: Any = {"network": case.network, "loss": case.loss, "weights": weights}
        settings |= {"transport": case.transport, **given}
        if not case.angles:
            return flat("d", mbp.transported_grads(params, x, y, **settings))
        step = mbp.transported_pass(params, x, y, **settings)
        return {"J": step.loss, **flat("d", step.grads), **flat("angles", step.angles[:-1])}

    def by_autodiff(params: Any, B: Any, x: Any, y: Any, weights: Any, seed: Any) -> Any:
        B = B or params  # not used where there is no feedback

        def loss(prediction: Any) -> Any:
            values = specs.of_loss(case.loss).reference(case.loss, prediction, y)
            return jnp.sum(weights * values)

        def total(params: Any, carry: Carry) -> Any:
            return loss(case.written(carry, params, B, x))

        if isinstance(case.transport, mbp.DirectFeedbackAlignment):
            e = jax.grad(loss)(case.written(plain, params, B, x))

            def surrogate(params: Any) -> Any:
                terms: list[Any] = []
                held = total(params, directly(e, terms))
                return held + sum(terms)

            return flat("d", jax.grad(surrogate)(params))
        grads = jax.grad(total)(params, case.carry(jax.random.key(seed)))
        if not case.angles:
            return flat("d", grads)
        J, true = jax.value_and_grad(total)(params, plain)
        return {"J": J, **flat("d", grads), **flat("angles", angles(grads, true)[:-1])}

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        x = inputs(rng, kind, case.network, case.shape)
        params = params_of_kind(rng, kind, case.network, x)
        if case.network == SIXTHS:
            params = (params[0], params[1]._replace(W=_sixths(rng, kind)))
        B: Any = ()
        if "feedback" in case.transport.takes:
            init = lambda params: case.transport.init(  # noqa: E731
                jax.random.key(0), params, x, network=case.network
            )
            B = jax.tree.map(
                lambda leaf: numbers(rng, "lattice" if case.exact else "normal", leaf.shape),
                jax.eval_shape(init, params),
            )
        prediction = prediction_shape(case.network, params, x)
        y = specs.of_loss(case.loss).target(rng, case.loss, prediction)
        weights = numbers(rng, "lattice" if case.exact else "normal", prediction[:-1])
        return params, B, x, y, weights, np.uint32(rng.integers(2**31))

    return Rule(
        name=f"{case.transport!r} through {case.network!r} on {case.shape}",
        family=type(case.transport).__name__,
        manual=manual,
        autodiff=by_autodiff,
        draw=draw,
        exact=case.exact,
        omitted=dict(case.omitted),
    )


def _sixths(rng: np.random.Generator, kind: str) -> np.ndarray:
    """The last layer's W, such that errors are sixths of the largest: halfway between 3 steps."""
    W = rng.integers(-6, 7, size=(1, 4)) * 1.0
    if kind == "beside":
        W *= 1 + rng.choice([-1, 1], size=W.shape) * BESIDE
    W[0, 0] = 6
    return W
