"""Spec of MultiHeadAttention: softmax of one einsum, or loops over heads, queries and keys."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

import manual_bp as mbp
from manual_bp.layers.multi_head_attention import MultiHeadAttention, Params
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def _scale(layer: MultiHeadAttention, d: int) -> float:
    return 1 / math.sqrt(d) if layer.scale is None else layer.scale


def _angles(layer: MultiHeadAttention, d: int, length: int) -> np.ndarray:
    """(T, d/2): of each point of the plane at each position."""
    assert layer.rotary is not None
    return np.outer(np.arange(length), float(layer.rotary) ** (-2 * np.arange(d // 2) / d))


def _turned(layer: MultiHeadAttention, z: jax.Array) -> jax.Array:
    """Each point (x_i, x_(i+d/2)) of z (m, T, heads, d) times its matrix of rotation."""
    if layer.rotary is None:
        return z
    *front, d = z.shape
    angle = _angles(layer, d, z.shape[1])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = z.reshape(*front, 2, d // 2)
    rotation = jnp.asarray(rotation, jnp.promote_types(z.dtype, jnp.float32))
    return jnp.einsum("mthpi,qpti->mthqi", points, rotation).reshape(z.shape).astype(z.dtype)


def _allowed(layer: MultiHeadAttention, m: int, T: int, S: int, taken: dict[str, Any]) -> Any:
    """Whether query t may read key s, as (m, heads, T, S)."""
    t, s = np.indices((T, S))
    allowed: Any = np.ones((m, layer.heads, T, S), bool)
    if layer.causal:
        allowed = allowed & (t >= s)
    if layer.window is not None:
        allowed = allowed & (t - s < layer.window)
    for name in ("mask", "memory_mask"):
        if name in taken:
            allowed = allowed & taken[name].reshape(m, 1, 1, S)
    if "attention_mask" in taken:
        pairs = taken["attention_mask"]
        allowed = allowed & (pairs[:, None] if pairs.ndim == 3 else pairs)
    return allowed


def reference(
    layer: MultiHeadAttention, params: Any, x: jax.Array, tap: Tap, memory: Any = None, **taken: Any
) -> jax.Array:
    """Keys and values repeated for each head of a group, jax.nn.softmax of all scores."""
    source = x if memory is None else memory
    kv_heads = layer.kv_heads or layer.heads

    def heads(W: Any, b: Any, z: Any, count: int) -> jax.Array:
        z = jnp.dot(z, W.T) if isinstance(b, tuple) else jnp.dot(z, W.T) + b
        return z.reshape(*z.shape[:2], count, -1)

    q = _turned(layer, heads(params.Wq, params.bq, x, layer.heads))
    k = _turned(layer, heads(params.Wk, params.bk, source, kv_heads))
    v = heads(params.Wv, params.bv, source, kv_heads)
    k, v = (jnp.repeat(each, layer.heads // kv_heads, axis=2) for each in (k, v))
    scores = jnp.einsum("mthd,mshd->mhts", q, k) * _scale(layer, q.shape[-1])
    if layer.soft_cap is not None:
        scores = layer.soft_cap * jnp.tanh(scores / layer.soft_cap)
    allowed = _allowed(layer, x.shape[0], x.shape[1], source.shape[1], taken)
    # Not -inf: where nothing may be read, softmax and its derivative would be NaN.
    scores = jnp.where(allowed, scores, -1e9)
    P = jnp.where(allowed, jax.nn.softmax(scores, axis=-1), 0)
    read = jnp.einsum("mhts,mshd->mthd", P, v).reshape(*x.shape[:2], -1)
    out = jnp.dot(read, params.Wo.T)
    return out if isinstance(params.bo, tuple) else out + params.bo


def naive(
    layer: MultiHeadAttention, params: Any, x: np.ndarray, memory: Any = None, **taken: Any
) -> np.ndarray:
    """One head, one query, one key at a time."""
    source = x if memory is None else memory
    kv_heads = layer.kv_heads or layer.heads

    def dense(W: Any, b: Any, row: Any) -> list[Any]:
        values = [sum(w * a for w, a in zip(each, row, strict=True)) for each in W]
        return values if isinstance(b, tuple) else [v + c for v, c in zip(values, b, strict=True)]

    def head(values: list[Any], number: int, d: int, t: int | None = None) -> list[Any]:
        part = values[number * d : (number + 1) * d]
        if layer.rotary is None or t is None:
            return part
        angles, half, turned = _angles(layer, d, t + 1)[t], d // 2, list(part)
        for i, angle in enumerate(angles):
            # As a program holds them: the nearest doubles.
            cos, sin = mp.mpf(float(np.cos(angle))), mp.mpf(float(np.sin(angle)))
            turned[i] = part[i] * cos - part[i + half] * sin
            turned[i + half] = part[i] * sin + part[i + half] * cos
        return turned

    m, T, S = *x.shape[:2], source.shape[1]
    d = params.Wq.shape[0] // layer.heads
    allowed = _allowed(layer, m, T, S, taken)
    out = np.empty((m, T, len(params.Wo)), object)
    for n in range(m):
        keys = [dense(params.Wk, params.bk, row) for row in source[n]]
        values = [dense(params.Wv, params.bv, row) for row in source[n]]
        for t in range(T):
            query, read = dense(params.Wq, params.bq, x[n, t]), []
            for h in range(layer.heads):
                group = h * kv_heads // layer.heads
                q, total, sums = head(query, h, d, t), mp.mpf(0), [mp.mpf(0)] * d
                for s in range(S):
                    if not allowed[n, h, t, s]:
                        continue
                    k, v = head(keys[s], group, d, s), head(values[s], group, d)
                    score = mp.mpf(_scale(layer, d)) * sum(a * b for a, b in zip(q, k, strict=True))
                    if layer.soft_cap is not None:
                        score = layer.soft_cap * mp.tanh(score / layer.soft_cap)
                    weight = mp.exp(score)
                    total += weight
                    sums = [a + weight * b for a, b in zip(sums, v, strict=True)]
                read += [each / total if total else each for each in sums]
            out[n, t] = dense(params.Wo, params.bo, read)
    return out


def draw(rng: np.random.Generator, shape: Shape) -> MultiHeadAttention | None:
    """Small heads for sequences; memory always has 3 features, so that several can share it."""
    if len(shape) != 3 or shape[1] > 8:
        return None
    heads = int(rng.choice([1, 2, 4]))
    crossing = rng.random() < 0.25
    causal = bool(not crossing and rng.random() < 0.5)
    return MultiHeadAttention(
        heads,
        kv_heads=int(rng.choice([each for each in (1, 2, 4) if each <= heads])),
        head_features=int(rng.choice([2, 4])),
        causal=causal,
        window=2 if causal and rng.random() < 0.2 else None,
        masked=bool(rng.random() < 0.2),
        attention_masked=bool(rng.random() < 0.2),
        memory=3 if crossing else None,
        soft_cap=2.0 if rng.random() < 0.2 else None,
        rotary=10.0 if not crossing and rng.random() < 0.3 else None,
        bias=bool(rng.random() < 0.5),
        block=2 if rng.random() < 0.4 else None,
    )


def shrink(layer: MultiHeadAttention) -> Iterator[MultiHeadAttention]:
    """One setting less."""
    if layer.heads > 1:
        yield replace(layer, heads=1, kv_heads=None)
    if layer.window is not None:
        yield replace(layer, window=None)
    elif layer.causal:
        yield replace(layer, causal=False)
    for name in ("masked", "attention_masked", "bias"):
        if getattr(layer, name):
            yield replace(layer, **{name: False})
    for name in ("soft_cap", "rotary", "block", "kv_heads", "scale"):
        if getattr(layer, name) is not None:
            yield replace(layer, **{name: None})


# --- points where autodiff errs ---------------------------------------------------------------

EMPTY = jnp.array([[[True, True], [False, False]]])
"""A mask by which the second query may read nothing."""


def _identity(d: int) -> Params:
    """One head whose matrices are all the identity."""
    one = jnp.eye(d)
    return Params(one, one, one, one, (), (), (), ())


def _gradient(layer: MultiHeadAttention, **taken: Any) -> Any:
    """dx of one head of one feature at x (T,), for the cotangent 1, 2, ..."""

    def run(x: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda W: W.astype(x.dtype), _identity(1))
        _, residuals = layer.forward(params, x[None, :, None], **taken)
        dout = jnp.arange(1, x.size + 1, dtype=x.dtype)[None, :, None]
        return layer.backward(params, residuals, dout)[1][0, :, 0]

    return run


def _by_autodiff(allowed: Any) -> Any:
    """The same by jax.grad of what one writes first: -inf for what may not be read."""

    def objective(x: jax.Array) -> jax.Array:
        scores = jnp.where(allowed, jnp.outer(x, x), -jnp.inf)
        P = jnp.exp(scores) / jnp.exp(scores).sum(-1, keepdims=True)
        return jnp.arange(1, x.size + 1, dtype=x.dtype) @ (P @ x)

    return jax.grad(objective)


def _edge(function: str, point: Any, dtype: str, stated: Any, empty: bool, **settings: Any) -> Edge:
    layer = MultiHeadAttention(1, bias=False, attention_masked=empty, **settings)
    taken = {"attention_mask": EMPTY} if empty else {}
    return Edge(
        function=function,
        point=point,
        dtype=dtype,
        stated=stated,
        manual=_gradient(layer, **taken),
        autodiff=_by_autodiff(EMPTY[0] if empty else True),
        recorded=(math.nan, math.nan),
    )


# x = (1, -1), only query 1 reads: P = (σ(2), σ(-2)), dV = P, dS = ± 2 σ(2) σ(-2), dQ = 2 |dS|.
READS_NOTHING = (0.880797 + 0.419974 + 0.209987, 0.119203 - 0.209987)
EDGES = (
    _edge("attention of a query that reads nothing", (1.0, -1.0), "float32", READS_NOTHING, True),
    _edge("the same in blocks", (1.0, -1.0), "float32", READS_NOTHING, True, block=1),
    # Each query reads itself alone: dV = dout, dS = 0.
    _edge("attention with scores of 10⁴", (100.0, -100.0), "float32", (1.0, 2.0), False),
    _edge("the same in blocks", (100.0, -100.0), "float32", (1.0, 2.0), False, block=1),
    _edge("attention with scores of 4e4", (200.0, -200.0), "float16", (1.0, 2.0), False, block=1),
    # Two keys are equal: P = ½, dV = ½ (1 + 2), and dP is the same for both, so dS = 0.
    _edge("attention to two equal keys", (100.0, 100.0), "float32", (1.5, 1.5), False),
    _edge("the same in blocks", (100.0, 100.0), "float32", (1.5, 1.5), False, block=1),
    _edge("attention to two equal keys", (3200.0, 3200.0), "float32", (1.5, 1.5), False),
    _edge("the same in blocks", (3200.0, 3200.0), "float32", (1.5, 1.5), False, block=1),
)


def _layer(**settings: Any) -> Any:
    """A row's call that makes a layer."""
    return lambda: MultiHeadAttention(**{"heads": 2, **settings})


def _forward(layer: MultiHeadAttention, x: Any = (2, 3, 4), **given: Any) -> Any:
    """A row's call of forward: params of another shape or dtype by name, or what is taken."""

    def call() -> Any:
        shaped = jnp.zeros((2, 3, 4))
        params = layer.init(jax.random.key(0), shaped)
        changed = {name: given.pop(name) for name in list(given) if name in Params._fields}
        return layer.forward(params._replace(**changed), jnp.zeros(x), **given)

    return call


TWO = MultiHeadAttention(2)
CROSS = MultiHeadAttention(2, memory=3)
TRUE = jnp.ones((2, 3), bool)

ERRORS = (
    BadInput(
        "attention: one sequence without an axis of examples",
        _forward(TWO, (3, 4)),
        ValueError,
        ("MultiHeadAttention(2)", "x has shape (3, 4)", "expected (m, T, F)", "x[None]"),
    ),
    BadInput(
        "attention: tokens",
        lambda: TWO.init(jax.random.key(0), jnp.zeros((2, 3, 4), jnp.int32)),
        TypeError,
        ("floating-point", "int32 (2, 3, 4)", "embedding"),
    ),
    BadInput(
        "attention: sequences of no length",
        lambda: TWO.init(jax.random.key(0), jnp.zeros((2, 0, 4))),
        ValueError,
        ("x has shape (2, 0, 4)", "no empty axis"),
    ),
    BadInput(
        "attention: features that heads don't divide",
        lambda: MultiHeadAttention(3).init(jax.random.key(0), jnp.zeros((2, 3, 4))),
        ValueError,
        ("x has 4 features", "multiple of heads=3", "head_features"),
    ),
    BadInput(
        "attention: odd heads turned by position",
        lambda: MultiHeadAttention(4, rotary=10.0).init(jax.random.key(0), jnp.zeros((2, 3, 4))),
        ValueError,
        ("rotary turns pairs", "even number", "got 1"),
    ),
    BadInput(
        "attention: x with another number of features",
        _forward(TWO, (2, 3, 6)),
        ValueError,
        ("Wq has shape (4, 4)", "expected (6, 6)"),
    ),
    BadInput(
        "attention: a matrix that is (n_in, n_out)",
        _forward(MultiHeadAttention(2, head_features=3), Wo=jnp.zeros((6, 4))),
        ValueError,
        ("Wo has shape (6, 4)", "expected (4, 6)", "Wo.T would fit"),
    ),
    BadInput(
        "attention: one bias for all",
        _forward(TWO, bv=jnp.zeros(1)),
        ValueError,
        ("bv has shape (1,)", "expected (4,)", "not broadcast"),
    ),
    BadInput(
        "attention: a bias without biases",
        _forward(MultiHeadAttention(2, bias=False), bo=jnp.zeros(4)),
        ValueError,
        ("params have a bias bo", "bias=False"),
    ),
    BadInput(
        "attention: integer weights",
        _forward(TWO, Wk=jnp.zeros((4, 4), jnp.int32)),
        TypeError,
        ("Wk must be a floating-point array", "int32"),
    ),
    BadInput(
        "attention: params of another layer",
        lambda: TWO.forward(mbp.Dense(4).init(jax.random.key(0), TRUE * 1.0), jnp.zeros((2, 3, 4))),  # pyright: ignore[reportArgumentType]
        TypeError,
        ("expected its Params(Wq, Wk", "dense.Params", "network.init"),
    ),
    BadInput(
        "attention: a mask that it doesn't take",
        _forward(TWO, mask=TRUE),
        TypeError,
        ("MultiHeadAttention(2) takes nothing", "leave out mask"),
    ),
    BadInput(
        "attention: a mask for examples alone",
        _forward(MultiHeadAttention(2, masked=True), mask=jnp.ones(2, bool)),
        ValueError,
        ("mask has shape (2,)", "expected (2, 3)"),
    ),
    BadInput(
        "attention: a mask of numbers",
        _forward(MultiHeadAttention(2, masked=True), mask=jnp.ones((2, 3))),
        TypeError,
        ("mask must be an array of booleans", "true where a key may be read", "float32"),
    ),
    BadInput(
        "attention: an attention mask for one head of two",
        _forward(
            MultiHeadAttention(2, attention_masked=True),
            attention_mask=jnp.ones((2, 1, 3, 3), bool),
        ),
        ValueError,
        ("attention_mask has shape (2, 1, 3, 3)", "(3, 3) or (2, 3, 3) or (2, 2, 3, 3)"),
    ),
    BadInput(
        "attention: memory left out",
        _forward(CROSS),
        TypeError,
        ("takes memory", "pass memory=..."),
    ),
    BadInput(
        "attention: memory with another number of features",
        _forward(CROSS, memory=jnp.zeros((2, 5, 4))),
        ValueError,
        ("memory has shape (2, 5, 4)", "expected (2, 5, 3)", "(m, S, F_mem)"),
    ),
    BadInput(
        "attention: memory without an axis of positions",
        _forward(CROSS, memory=jnp.zeros((2, 3))),
        ValueError,
        ("memory has shape (2, 3)", "expected (2, S, 3)"),
    ),
    BadInput(
        "attention: a mask of x's positions for those of memory",
        _forward(
            MultiHeadAttention(2, memory=3, masked=True),
            memory=jnp.zeros((2, 5, 3)),
            memory_mask=TRUE,
        ),
        ValueError,
        ("memory_mask has shape (2, 3)", "expected (2, 5)"),
    ),
    BadInput("attention: no heads", _layer(heads=0), TypeError, ("heads must be a positive int",)),
    BadInput(
        "attention: heads that groups don't divide",
        _layer(heads=4, kv_heads=3),
        ValueError,
        ("multiple of kv_heads", "4 heads", "3 of keys and values"),
    ),
    BadInput(
        "attention: a mask among the settings",
        _layer(masked=TRUE),
        TypeError,
        ("masked must be True or False", "argument of the call"),
    ),
    BadInput(
        "attention: a window of what follows too",
        _layer(window=2),
        ValueError,
        ("window counts positions back", "causal=True"),
    ),
    BadInput(
        "attention: causal across two sequences",
        _layer(memory=3, causal=True),
        ValueError,
        ("causal=True compares positions of one sequence", "attention_mask"),
    ),
    BadInput(
        "attention: positions turned across two sequences",
        _layer(memory=3, rotary=10.0),
        ValueError,
        ("rotary compares positions of one sequence",),
    ),
    BadInput(
        "attention: a soft cap of 0",
        _layer(soft_cap=0.0),
        ValueError,
        ("MultiHeadAttention: soft_cap must be a positive number", "0.0"),
    ),
)


SPECS = (
    LayerSpec(
        layer=MultiHeadAttention,
        samples=(
            # Biases where rotary or the soft cap make bk matter: dbk is 0 without.
            (
                MultiHeadAttention(
                    3, kv_heads=1, head_features=2, causal=True, masked=True, rotary=10.0
                ),
                (3, 3, 3),
            ),
            (
                MultiHeadAttention(
                    2, kv_heads=1, masked=True, attention_masked=True, soft_cap=1.5, block=1
                ),
                (2, 5, 2),  # two turns, the last block is filled; some queries read nothing
            ),
            (
                MultiHeadAttention(4, kv_heads=2, memory=3, masked=True, bias=False, scale=0.7),
                (2, 2, 4),
            ),
            (
                MultiHeadAttention(1, causal=True, window=3, masked=True, bias=False, block=1),
                (2, 5, 2),  # two turns of strips that end before T, and that the window moves
            ),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        edges=EDGES,
        errors=ERRORS,
    ),
)
