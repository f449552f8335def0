"""Norms, activations, a gate and softmax: forward, and backward of an error that arrives.

One layer as it is inside of a network: x and an error come in, the output and the gradients go out.
So nothing of forward is spared because backward is next, and the error is an array, not a formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import manual_bp as mbp
from benchmarks.row import IDIOMATIC, OURS, SAME, TIME, Eager, Group, Row, Target, Way
from benchmarks.torch_ways import tensor, torch_way
from manual_bp.layer import Layer

SHAPE = (4096, 1024)
MEBIBYTE, KIBIBYTE = 2**20, 2**10

Function = Callable[[Any, Any], Any]
"""out = function(params, x), where x may be several arrays."""


class Subject(NamedTuple):
    """One layer in all its ways."""

    forward: Callable[[Any, Any], tuple[Any, Any]]
    """(out, residuals) of (params, x)."""
    backward: Callable[[Any, Any, Any], Any]
    """(dparams, dx) of (params, residuals, dout)."""
    init: Callable[[Any], Any]
    """params of x."""
    idiomatic: Callable[[], Function]
    """As people write it, of the same params."""
    torch: Callable[[Any, Any, Any], Any]
    """Of the module torch, params and x."""
    against: str
    """What the idiomatic way is."""
    why: str
    """What backward keeps, and why nothing smaller would do."""
    arrays: int = 1
    """How many arrays x is."""


def drawn(subject: Subject, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """params, x and the error."""
    *x, dout = (jax.random.normal(jax.random.key(n), shape) for n in range(subject.arrays + 1))
    x = tuple(x) if subject.arrays > 1 else x[0]
    return subject.init(x), x, dout


def by_hand(subject: Subject) -> Callable[[Any, Any, Any], Any]:
    """out, dparams and dx."""

    def run(params: Any, x: Any, dout: Any) -> Any:
        out, residuals = subject.forward(params, x)
        return out, subject.backward(params, residuals, dout)

    return run


def by_autodiff(function: Function) -> Callable[[Any, Any, Any], Any]:
    """The same by jax.grad of Σ out ⊙ dout, which passes dout on as it is."""

    def weighed(params: Any, x: Any, dout: Any) -> Any:
        out = function(params, x)
        return (out * dout).sum(), out

    def run(params: Any, x: Any, dout: Any) -> Any:
        (_, out), grads = jax.value_and_grad(weighed, (0, 1), has_aux=True)(params, x, dout)
        return out, grads

    return run


def ways(subject: Subject, shape: tuple[int, ...] = SHAPE) -> dict[str, Way | Eager]:
    """By hand, jax.grad of the same, jax.grad of flax or jax.nn, PyTorch."""
    args = params, x, dout = drawn(subject, shape)
    return {
        OURS: Way(by_hand(subject), args),
        SAME: Way(by_autodiff(lambda params, x: subject.forward(params, x)[0]), args),
        IDIOMATIC: Way(by_autodiff(subject.idiomatic()), args),
        **torch_way(lambda torch: _in_torch(torch, subject, params, x, dout)),
    }


def kept(subject: Subject, shape: tuple[int, ...] = SHAPE) -> dict[str, int]:
    """Bytes that backward keeps: of the layer's "input", of its "output", and "other" ones."""
    sizes = {"input": 0, "output": 0, "other": 0}

    def forward(params: Any, x: Any) -> None:
        out, residuals = subject.forward(params, x)
        inputs = [id(each) for each in jax.tree.leaves(x)]
        for leaf in jax.tree.leaves(residuals):
            kind = "input" if id(leaf) in inputs else "output" if leaf is out else "other"
            sizes[kind] += leaf.size * leaf.dtype.itemsize

    params, x, _ = jax.eval_shape(lambda: drawn(subject, shape))
    jax.eval_shape(forward, params, x)
    return sizes


def note(subject: Subject) -> str:
    """What backward keeps, with its bytes."""
    sizes = [f"{_bytes(size)} of {kind}" for kind, size in kept(subject).items() if size]
    return f"Backward keeps {', '.join(sizes)}: {subject.why}".replace("of other", "beside")


def _bytes(size: int) -> str:
    return f"{size // MEBIBYTE} MiB" if size >= MEBIBYTE else f"{size // KIBIBYTE} KiB"


def _in_torch(torch: Any, subject: Subject, params: Any, x: Any, dout: Any) -> Callable[[], Any]:
    wanted = [tensor(torch, each, requires_grad=True) for each in jax.tree.leaves((params, x))]
    error = tensor(torch, dout)
    split = len(jax.tree.leaves(params))

    def run() -> Any:
        out = subject.torch(torch.nn.functional, wanted[:split], wanted[split:])
        return out.detach(), torch.autograd.grad(out, wanted, error)

    return run


def _of_layer(
    layer: Layer, idiomatic: Callable[[], Function], torch: Any, against: str, why: str
) -> Subject:
    key = jax.random.key(0)
    return Subject(
        layer.forward,
        layer.backward,
        lambda x: layer.init(key, x),
        idiomatic,
        torch,
        against,
        why,
    )


def _in_flax(kind: str, **settings: Any) -> Callable[[], Function]:
    """A norm of flax.nnx, of our params: scale, and shift if it has one."""

    def made() -> Function:
        from flax import nnx

        def run(params: Any, x: Any) -> Any:
            norm = vars(nnx)[kind](x.shape[-1], rngs=nnx.Rngs(0), **settings)
            norm.scale = nnx.Param(params.scale)
            if hasattr(params, "shift"):
                norm.bias = nnx.Param(params.shift)
            if hasattr(norm, "mean"):
                norm.mean, norm.var = (nnx.BatchStat(jnp.zeros_like(x[0])) for _ in range(2))
            return norm(x)

        return run

    return made


def _swiglu() -> Subject:
    """silu(z) ⊙ u, what lies between the products of a gated MLP."""
    layer = mbp.GatedMLP(SHAPE[-1], mbp.silu)
    return Subject(
        lambda params, x: (layer.gated(x[0], x[1]), x),
        lambda params, residuals, dout: (
            (),
            layer.gate_errors(residuals[0], residuals[1], dout)[:2],
        ),
        lambda x: (),
        lambda: lambda params, x: jax.nn.silu(x[0]) * x[1],
        lambda torch, params, x: torch.silu(x[0]) * x[1],
        "jax.nn.silu(z) * u",
        "both factors, each of which the error of the other needs; silu and its slope are "
        "computed again. The gate alone, without the products of a gated MLP. Tried: 15 forms of "
        "silu and its slope, and barriers that keep XLA from storing what both need; they differ "
        "by less than the runs do.",
        arrays=2,
    )


SUBJECTS: dict[str, Subject] = {
    "LayerNorm": _of_layer(
        mbp.LayerNorm(),
        _in_flax("LayerNorm", epsilon=1e-5),
        lambda torch, params, x: torch.layer_norm(*x, x[0].shape[-1:], *params, 1e-5),
        "flax.nnx.LayerNorm",
        "x, from which x̂ follows with two numbers for each row, its mean and 1/σ.",
    ),
    "RMSNorm": _of_layer(
        mbp.RMSNorm(),
        _in_flax("RMSNorm", epsilon=1e-6),
        lambda torch, params, x: torch.rms_norm(*x, x[0].shape[-1:], *params, 1e-6),
        "flax.nnx.RMSNorm",
        "x, from which x̂ follows with one number for each row.",
    ),
    "BatchNorm": _of_layer(
        mbp.BatchNorm(),
        _in_flax("BatchNorm", epsilon=1e-5, use_running_average=False),
        lambda torch, params, x: torch.batch_norm(*x, None, None, *params, True, 0.0, 1e-5),
        "flax.nnx.BatchNorm",
        "x, from which x̂ follows with two numbers for each channel, its mean and variance.",
    ),
    "GELU": _of_layer(
        mbp.gelu,
        lambda: lambda params, x: jax.nn.gelu(x, approximate=False),
        lambda torch, params, x: torch.gelu(*x),
        "jax.nn.gelu(x, approximate=False)",
        "g'(x) alone, so that backward is one product. out wouldn't do: to each of its values "
        "below 0 belong two x. Tried: the density from erfc's own exponential, which took half of "
        "jax.grad's time in one run and has a larger error than it in float32.",
    ),
    "SwiGLU": _swiglu(),
    "softmax": _of_layer(
        mbp.Softmax(),
        lambda: lambda params, x: jax.nn.softmax(x),
        lambda torch, params, x: torch.softmax(*x, -1),
        "jax.nn.softmax",
        "out alone, of which dx is made; whoever multiplies by it keeps it anyway.",
    ),
}


def group() -> Group:
    """The rows."""
    rows = tuple(
        Row(
            f"{name} {SHAPE[0]} x {SHAPE[1]}",
            lambda subject=subject: ways(subject),
            (Target(TIME, 1.0),),
            note=note(subject),
            against_idiomatic=subject.against,
        )
        for name, subject in SUBJECTS.items()
    )
    return Group("elementwise", "Norms, activations, softmax", rows, (Target(TIME, 0.8),))
