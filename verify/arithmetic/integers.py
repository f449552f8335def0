"""Primitives of integers and booleans: exact in every arithmetic, so they are shared."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from verify.arithmetic import indexing, windows


def _iota(params: Any) -> np.ndarray:
    shape = params["shape"]
    along = [1] * len(shape)
    along[params["dimension"]] = -1
    counted = np.arange(shape[params["dimension"]]).reshape(along)
    return np.broadcast_to(counted, shape).astype(params["dtype"])


def _unsigned(bits: int) -> Any:
    return {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[bits]


INTEGERS = {
    # Keys are JAX's own arrays: what they give is the same in every arithmetic.
    "random_seed": lambda params, seed: jax.random.key(seed, impl=params["impl"].name),
    "random_fold_in": lambda params, key, data: (
        jax.vmap(jax.random.fold_in)(key, data) if np.ndim(data) else jax.random.fold_in(key, data)
    ),
    "random_split": lambda params, key: jax.random.split(key, params["shape"]),
    "random_bits": lambda params, key: np.asarray(
        jax.random.bits(key, params["shape"], _unsigned(params["bit_width"]))
    ),
    "iota": _iota,
    # nobody looks at it: each choice by it was made when the program was traced
    "platform_index": lambda params: np.zeros((), np.int32),
    # what a scan that is differentiated starts its stacks with: XLA is given 0
    "empty2": lambda params: np.zeros((), params["dtype"]),
    "add": lambda params, a, b: a + b,
    "sub": lambda params, a, b: a - b,
    "mul": lambda params, a, b: a * b,
    "neg": lambda params, a: -a,
    "sign": lambda params, a: np.sign(a),
    "abs": lambda params, a: np.abs(a),
    "max": lambda params, a, b: np.maximum(a, b),
    "min": lambda params, a, b: np.minimum(a, b),
    "rem": lambda params, a, b: np.fmod(a, b),
    "div": lambda params, a, b: (a / b).astype(np.int64),
    "eq": lambda params, a, b: np.equal(a, b),
    "ne": lambda params, a, b: np.not_equal(a, b),
    "gt": lambda params, a, b: np.greater(a, b),
    "ge": lambda params, a, b: np.greater_equal(a, b),
    "lt": lambda params, a, b: np.less(a, b),
    "le": lambda params, a, b: np.less_equal(a, b),
    "and": lambda params, a, b: np.bitwise_and(a, b),
    "or": lambda params, a, b: np.bitwise_or(a, b),
    "xor": lambda params, a, b: np.bitwise_xor(a, b),
    "not": lambda params, a: np.invert(a),
    "clamp": lambda params, low, a, high: np.clip(a, low, high),
    "convert_element_type": lambda params, a: np.asarray(a).astype(params["new_dtype"]),
    "reduce_sum": lambda params, a: np.sum(a, axis=tuple(params["axes"])),
    "reduce_max": lambda params, a: np.max(a, axis=tuple(params["axes"])),
    "reduce_min": lambda params, a: np.min(a, axis=tuple(params["axes"])),
    "reduce_and": lambda params, a: np.all(a, axis=tuple(params["axes"])),
    "reduce_or": lambda params, a: np.any(a, axis=tuple(params["axes"])),
    "scatter-add": indexing.scatter_add,
    **windows.PLAIN,
}
