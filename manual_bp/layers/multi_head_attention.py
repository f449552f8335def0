"""Multi-head attention: every position reads from others, as much as its query fits their keys.

Forward, for x (m, T, F) and what is read, r (m, S, F_r): x itself, or memory:

    Q = x Wqᵀ + bq,   K = r Wkᵀ + bk,   V = r Wvᵀ + bv       cut into heads of d features
    O = attention(Q, K, V)                                    each head by itself: `_attention`
    out = O Woᵀ + bo                                          the heads beside each other again

Backward, given dout:

    dWo = doutᵀ O,   dbo = Σ dout,   dO = dout Wo
    dQ, dK, dV = what attention makes of dO                   `_attention`
    dWq = dQᵀ x,   dbq = Σ dQ,   likewise dWk and dbk, dWv and dbv with r
    dx = dQ Wq,    dr = dK Wk + dV Wv                         reading itself, x gets both, added

Derivation.  Four dense layers around attention: each line is theirs. Cutting into heads moves
numbers and its transpose moves them back. x is used three times where it reads itself, so three
errors add.

With rotary, queries and keys are turned by their positions before they meet (`_rotary`), and their
errors are turned back. Head h reads from head ⌊h / (heads / kv_heads)⌋ of keys and values.

bk adds the same number, Q·bk, to all scores of a query, which softmax ignores: without rotary and
without a soft cap, out doesn't depend on it, and dbk is 0 but for rounding.

A query that may read nothing has O = 0, so out = bo there, and passes no error on.

A position that mask or memory_mask rules out is read as 0, since P = 0 alone would leave 0 · NaN.
So whatever is in masked memory, NaN too, changes nothing, and its error is exactly 0. In x such a
position is a query still: NaN there makes its own row of out NaN, no other one, but through that
row the gradients too, unless x is cleaned first, as `manual_grads` does where weights of (m, T) are
0. attention_mask rules out pairs: what it rules out must be finite.

Backward keeps x (and memory), Q, K, V, O and what attention keeps: P, which has T · S numbers for
each head, or with `block` two numbers for each query and head.

Shapes  x, out, dout, dx: (m, T, F); memory, dmemory: (m, S, F_mem); Wq: (heads · d, F);
        Wk, Wv: (kv_heads · d, F or F_mem); Wo: (F, heads · d); biases: as many as rows
Source  Vaswani et al. (2017), Attention is all you need, arXiv:1706.03762
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating, check_number, glorot
from manual_bp.layer import (
    Layer,
    Tree,
    check_taken,
    outer_over_examples,
    sum_over_examples,
)
from manual_bp.layers import _attention, _blocked_attention
from manual_bp.layers._attention import How, Masks
from manual_bp.layers._rotary import rotate
from manual_bp.sharding import along, axes_of, beside, by_rows, divided, matmul, reshape


class Params(NamedTuple):
    """Wq: (heads · d, F), Wk, Wv: (kv_heads · d, F_r), Wo: (F, heads · d), biases: as their rows.

    Without biases bq, bk, bv and bo are ().
    """

    Wq: Any
    Wk: Any
    Wv: Any
    Wo: Any
    bq: Any
    bk: Any
    bv: Any
    bo: Any


class Residuals(NamedTuple):
    """x: (m, T, F); memory: (m, S, F_mem), or None; q, k, v: cut into heads and turned;
    read: O, in heads; masks: who may read whom; kept: what attention keeps.
    """

    x: jax.Array
    memory: jax.Array | None
    q: jax.Array
    k: jax.Array
    v: jax.Array
    read: jax.Array
    masks: Masks
    kept: Tree


@dataclass(frozen=True)
class MultiHeadAttention(Layer):
    """softmax(scale · Q Kᵀ) V for each head, between dense layers.

    Weights are drawn by Glorot's rule unless told otherwise, biases are 0.

    Args:
        heads: how many heads queries have.
        kv_heads: how many keys and values have, a divisor of heads: 1 is multi-query attention,
            fewer than heads grouped; as many as heads unless given.
        head_features: d, of each head; F / heads unless given.
        causal: whether position t reads positions s ≤ t alone.
        window: how many positions back it reads, itself among them; all unless given.
        masked: whether forward takes mask=..., (m, T) booleans, which positions may be read; with
            memory it is memory_mask=..., (m, S).
        attention_masked: whether forward takes attention_mask=..., booleans (T, S), (m, T, S) or
            (m, heads, T, S): whether query t may read key s.
        memory: F_mem, the features of what it reads: forward then takes memory=..., (m, S, F_mem),
            which gets a gradient. It reads x itself unless given.
        scale: of scores; 1/√d unless given.
        soft_cap: c, for scores c tanh(S / c); none unless given.
        rotary: the base of rotary position embeddings, such as 10000.0; none unless given.
        bias: whether biases are added.
        block: how many queries are compared with all keys at a time: memory is then linear in T.
            A fourth of T is fastest on a CPU, up to 256. All at once unless given.
        initial_std: standard deviation of the weights as drawn, from a normal distribution.
        last_initial_std: that of Wo, where it is to differ: GPT-2 draws it smaller.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for settings that don't go together, and for shapes that don't fit.

    Source: Vaswani et al. (2017), arXiv:1706.03762.

    Example:
        >>> layer, x = MultiHeadAttention(2, causal=True), jnp.ones((5, 7, 4))
        >>> params = layer.init(jax.random.key(0), x)
        >>> out, residuals = layer.forward(params, x)
        >>> dparams, dx = layer.backward(params, residuals, jnp.ones_like(out))
        >>> out.shape, dparams.Wq.shape, dx.shape
        ((5, 7, 4), (4, 4), (5, 7, 4))

        In an encoder-decoder, what is read has an error too:

        >>> layer, memory = MultiHeadAttention(2, memory=3), jnp.ones((5, 6, 3))
        >>> params = layer.init(jax.random.key(0), x)
        >>> out, residuals = layer.forward(params, x, memory=memory)
        >>> _, dx, dtaken = layer.backward_taken(params, residuals, jnp.ones_like(out))
        >>> dtaken["memory"].shape
        (5, 6, 3)
    """

    heads: int
    kv_heads: int | None = field(default=None, kw_only=True)
    head_features: int | None = field(default=None, kw_only=True)
    causal: bool = field(default=False, kw_only=True)
    window: int | None = field(default=None, kw_only=True)
    masked: bool = field(default=False, kw_only=True)
    attention_masked: bool = field(default=False, kw_only=True)
    memory: int | None = field(default=None, kw_only=True)
    scale: float | None = field(default=None, kw_only=True)
    soft_cap: float | None = field(default=None, kw_only=True)
    rotary: float | None = field(default=None, kw_only=True)
    bias: bool = field(default=True, kw_only=True)
    block: int | None = field(default=None, kw_only=True)
    initial_std: float | None = field(default=None, kw_only=True)
    last_initial_std: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        kind, settings = type(self).__name__, asdict(self)
        for name in ("heads", "kv_heads", "head_features", "window", "memory", "block"):
            value = settings[name]
            if value is None and name != "heads":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise TypeError(f"{kind}: {name} must be a positive int, got {value!r}.")
        for name in ("causal", "masked", "attention_masked", "bias"):
            if not isinstance(settings[name], bool):
                advice = "" if "masked" not in name else " The mask is an argument of the call."
                raise TypeError(
                    f"{kind}: {name} must be True or False, got {settings[name]!r}.{advice}"
                )
        for name in ("scale", "soft_cap", "rotary", "initial_std", "last_initial_std"):
            value = settings[name]
            if value is not None:
                wanted = "a positive number"
                check_number(f"{kind}: {name}", value, wanted, lambda number: number > 0)
        if self.heads % self._kv_heads:
            raise ValueError(
                f"{self!r}: heads must be a multiple of kv_heads, got {self.heads} heads for "
                f"{self.kv_heads} of keys and values."
            )
        if self.window is not None and not self.causal:
            raise ValueError(f"{self!r}: window counts positions back: it needs causal=True.")
        if self.memory is not None and (self.causal or self.rotary is not None):
            name = "causal=True" if self.causal else "rotary"
            raise ValueError(
                f"{self!r}: {name} compares positions of one sequence; memory is another one. "
                "Leave it out, or say by attention_mask who reads whom."
            )

    @property
    def takes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Memory, if it reads one, and the masks that settings ask for."""
        names = ("attention_mask",) if self.attention_masked else ()
        if self.memory is None:
            return (*names, "mask") if self.masked else names
        return (*names, "memory", "memory_mask") if self.masked else (*names, "memory")

    @property
    def differentiates(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Memory, if it reads one."""
        return () if self.memory is None else ("memory",)

    def stand_in(self, name: str, x: Any) -> Any:
        m, T, *_ = x.shape  # tokens, where an embedding comes first
        S = T if self.memory is None else 3
        if name == "memory":
            floating = jnp.issubdtype(x.dtype, jnp.floating)
            dtype = jnp.result_type(x) if floating else jnp.float32
            return jnp.zeros((m, S, self.memory), dtype)
        if name in ("mask", "memory_mask"):
            return jnp.ones((m, S), bool)
        if name == "attention_mask":
            return jnp.ones((m, T, S), bool)
        return super().stand_in(name, x)

    def init(self, key: jax.Array, x: Any) -> Params:
        self._check_input(x)
        features = x.shape[-1]
        d = self._head_features(features)
        of_queries, of_keys = self.heads * d, self._kv_heads * d
        read = features if self.memory is None else self.memory
        shapes = ((of_queries, features), (of_keys, read), (of_keys, read), (features, of_queries))
        last = self.initial_std if self.last_initial_std is None else self.last_initial_std
        drawn = [
            _initializer(std)(jax.random.fold_in(key, number), shape, x.dtype)
            for number, (shape, std) in enumerate(
                zip(shapes, (*[self.initial_std] * 3, last), strict=True)
            )
        ]
        biases = [jnp.zeros(shape[0], x.dtype) if self.bias else () for shape in shapes]
        return Params(*drawn, *biases)

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check(params, x, taken)
        memory, masks = taken.get("memory"), self._masks(x, taken)
        source = _readable(x if memory is None else memory, masks)
        divided = self._divided(params, x)
        q = _affine(params.Wq, params.bq, x)
        k, v = _affine(params.Wk, params.bk, source), _affine(params.Wv, params.bv, source)
        q = self._in_groups(self._heads_first(q, self.heads, divided, self.rotary))
        k = self._heads_first(k, self._kv_heads, divided, self.rotary)
        v = self._heads_first(v, self._kv_heads, divided)
        if self.block is None:
            read, kept = _attention.forward(self._how(q), q, k, v, masks)
        else:
            read, kept = _blocked_attention.forward(self._how(q), self.block, q, k, v, masks)
        read = read.astype(q.dtype)
        out = _affine(params.Wo, params.bo, self._side_by_side(read))
        return out, Residuals(x, memory, q, k, v, read, masks, kept)

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        dparams, dx, _ = self.backward_taken(params, residuals, dout)
        return dparams, dx

    def backward_taken(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array, dict[str, jax.Array]]:
        x, memory, *_ = residuals
        errors = self.errors(params, residuals, dout)
        pairs = [*zip(errors, self.inputs(residuals), strict=True)]
        dparams = Params(
            *(outer_over_examples(*pair, W) for pair, W in zip(pairs, params[:4], strict=True)),
            *(
                sum_over_examples(error, like=b) if self.bias else ()
                for error, b in zip(errors, params[4:], strict=True)
            ),
        )
        dx, dsource = self.passed_on(params, residuals, errors)
        if memory is None:
            return dparams, (dx + dsource).astype(x.dtype), {}
        return dparams, dx.astype(x.dtype), {"memory": dsource.astype(memory.dtype)}

    def errors(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """dQ, dK, dV and dout: those of the four dense layers, (m, T or S, their features)."""
        _, _, q, k, v, read, masks, kept = residuals
        dread = self._heads_first(matmul(dout, params.Wo), self.heads, axes_of(q)[:2])
        how, dread = self._how(q), self._in_groups(dread)
        if self.block is None:
            errors = _attention.backward(how, q, k, v, kept, dread)
        else:
            errors = _blocked_attention.backward(how, self.block, q, k, v, masks, read, kept, dread)
        dq, dk, dv = errors
        dq, dk = self._side_by_side(dq, self.rotary), self._side_by_side(dk, self.rotary)
        return dq, dk, self._side_by_side(dv), dout

    def inputs(self, residuals: Residuals) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """x, r, r and O: what the four dense layers take."""
        x, memory, *_, read, masks, _ = residuals
        source = _readable(x if memory is None else memory, masks)
        return x, source, source, self._side_by_side(read)

    def passed_on(
        self,
        params: Params,
        residuals: Residuals,
        errors: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """dQ Wq and dK Wk + dV Wv: dx and dr, or the two parts of dx."""
        x, memory, *_ = residuals
        source, (dq, dk, dv, _) = x if memory is None else memory, errors
        dsource = matmul(dk, params.Wk, source) + matmul(dv, params.Wv, source)
        return matmul(dq, params.Wq, x), dsource

    @property
    def _kv_heads(self) -> int:
        """The heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    def _how(self, q: jax.Array) -> How:
        """The settings of attention between heads like these."""
        scale = 1 / math.sqrt(q.shape[-1]) if self.scale is None else self.scale
        return How(scale, self.soft_cap, self.causal, self.window)

    def _divided(self, params: Params, x: jax.Array) -> tuple[Any, Any]:
        """The mesh axes along which examples and heads are divided: heads as the rows of Wq are.

        Where these don't divide the heads of keys, no heads are divided.
        """
        groups = along(x, axes_of(x)[0], axes_of(params.Wq)[0], shape=(len(x), self._kv_heads))
        return (None, None) if groups is None else tuple(groups.spec)

    def _heads_first(
        self, z: jax.Array, heads: int, divided: tuple[Any, Any], base: float | None = None
    ) -> jax.Array:
        """(m, T, heads · d) as (m, heads, T, d), turned by position where there is a base."""
        examples, of_heads = divided
        m, T, features = z.shape
        cut = reshape(z, (m, T, heads, features // heads), examples, None, of_heads)
        return jnp.swapaxes(cut if base is None else rotate(cut, base), 1, 2)

    def _in_groups(self, z: jax.Array) -> jax.Array:
        """(m, heads, T, d) as (m, H, G, T, d): the heads that read from one are neighbours."""
        m, heads, T, d = z.shape
        return reshape(z, (m, self._kv_heads, heads // self._kv_heads, T, d), *axes_of(z)[:2])

    def _side_by_side(self, z: jax.Array, base: float | None = None) -> jax.Array:
        """The way back: (m, H, G, T, d) or (m, heads, T, d) as (m, T, heads · d), turned back."""
        m, *heads, T, d = z.shape
        examples, of_heads, *_ = axes_of(z)
        cut = reshape(z, (m, math.prod(heads), T, d), examples, of_heads)
        cut = jnp.swapaxes(cut, 1, 2)
        turned = cut if base is None else rotate(cut, base, inverse=True)
        return reshape(turned, (m, T, math.prod(heads) * d), examples, None, of_heads)

    def _masks(self, x: jax.Array, taken: dict[str, Any]) -> Masks:
        """Those that were given, with axes (m, H, G, T, S)."""
        keys, examples = taken.get("mask", taken.get("memory_mask")), axes_of(x)[0]
        if keys is not None:
            keys = divided(keys, examples, None)[:, None, None, None]
        pairs = taken.get("attention_mask")
        if pairs is not None:
            *_, T, S = pairs.shape
            in_groups = (self._kv_heads, self.heads // self._kv_heads)
            heads = in_groups if pairs.ndim == 4 else (1, 1)
            shape = (len(x) if pairs.ndim > 2 else 1, *heads, T, S)
            pairs = reshape(jnp.asarray(pairs), shape, examples)
        return Masks(keys, pairs)

    def _head_features(self, features: int) -> int:
        """d, for inputs with this many features."""
        if self.head_features is None and features % self.heads:
            raise ValueError(
                f"{self!r}: x has {features} features, expected a multiple of heads={self.heads}; "
                "or say head_features=..."
            )
        d = features // self.heads if self.head_features is None else self.head_features
        if self.rotary is not None and d % 2:
            raise ValueError(
                f"{self!r}: rotary turns pairs of features, expected an even number in each head, "
                f"got {d}."
            )
        return d

    def _check_input(self, x: Any) -> None:
        check_floating(self, x)
        if x.ndim != 3 or 0 in x.shape[1:]:
            advice = " For one sequence write x[None]." if x.ndim == 2 else ""
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, expected (m, T, F): examples, positions, "
                f"features, with no empty axis but the examples'.{advice}"
            )

    def _check(self, params: Any, x: Any, taken: dict[str, Any]) -> None:
        """Raise unless params, x and what is taken fit together."""
        self._check_input(x)
        if not isinstance(params, Params):
            raise TypeError(
                f"{self!r} expected its Params({', '.join(Params._fields)}), got "
                f"{type(params).__module__}.{type(params).__name__}. Make them with "
                "network.init(key, x)."
            )
        m, T, features = x.shape
        d, read = self._head_features(features), features if self.memory is None else self.memory
        of_queries, of_keys = self.heads * d, self._kv_heads * d
        shapes = ((of_queries, features), (of_keys, read), (of_keys, read), (features, of_queries))
        for name, value, shape in zip("qkvo", params[:4], shapes, strict=True):
            self._check_array(f"W{name}", value, shape, " It is (n_out, n_in).")
        for name, value, (rows, _) in zip("qkvo", params[4:], shapes, strict=True):
            if self.bias:
                self._check_array(f"b{name}", value, (rows,), " It is not broadcast.")
            elif jax.tree.leaves(value):
                raise ValueError(
                    f"{self!r}: params have a bias b{name}, expected () since bias=False."
                )
        S = T
        if "memory" in taken:
            memory = taken["memory"]
            S = memory.shape[1] if getattr(memory, "ndim", 0) == 3 else 0
            expected = (m, S or "S", self.memory)
            self._check_array("memory", memory, expected, " It is (m, S, F_mem).")
        for name in ("mask", "memory_mask"):
            if name in taken:
                self._check_mask(name, taken[name], ((m, S),))
        if "attention_mask" in taken:
            fits = ((T, S), (m, T, S), (m, self.heads, T, S))
            self._check_mask("attention_mask", taken["attention_mask"], fits)

    def _check_array(self, name: str, value: Any, shape: Any, advice: str) -> None:
        if not hasattr(value, "shape") or not jnp.issubdtype(value.dtype, jnp.floating):
            given = f"{value.dtype}" if hasattr(value, "dtype") else type(value).__name__
            raise TypeError(f"{self!r}: {name} must be a floating-point array, got {given}.")
        if tuple(value.shape) != shape:
            expected = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
            if len(shape) == 2 and tuple(value.shape) == shape[::-1]:
                advice = f" {name}.T would fit: it is (n_out, n_in)."
            raise ValueError(
                f"{self!r}: {name} has shape {tuple(value.shape)}, expected {expected}.{advice}"
            )

    def _check_mask(self, name: str, mask: Any, fits: tuple[tuple[int, ...], ...]) -> None:
        if not hasattr(mask, "dtype") or mask.dtype != bool:
            given = f"{mask.dtype}" if hasattr(mask, "dtype") else type(mask).__name__
            raise TypeError(
                f"{self!r}: {name} must be an array of booleans, true where a key may be read; "
                f"got {given}."
            )
        if tuple(mask.shape) not in fits:
            raise ValueError(
                f"{self!r}: {name} has shape {tuple(mask.shape)}, expected "
                f"{' or '.join(map(str, fits))}."
            )


def _initializer(std: float | None) -> Any:
    """How weights are drawn: by Glorot's rule, or with this standard deviation."""
    return glorot if std is None else jax.nn.initializers.normal(std)


def _readable(source: jax.Array, masks: Masks) -> jax.Array:
    """What keys and values are made of, 0 where no query may read it: 0 · NaN would be NaN."""
    if masks.keys is None:
        return source
    return jnp.where(masks.keys.reshape(*source.shape[:2], 1), source, 0)


def _affine(W: Any, b: Any, x: jax.Array) -> jax.Array:
    """x Wᵀ + b."""
    z = by_rows(x, W)
    return z if isinstance(b, tuple) else z + beside(b, z)
