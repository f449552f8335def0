"""PyTorch's way to the same gradients, eager, if it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.row import TORCH, Eager


def torch_way(make: Callable[[Any], Callable[[], Any]]) -> dict[str, Eager]:
    """{"PyTorch": make(torch)}, or nothing where PyTorch isn't installed.

    Args:
        make: make(torch) -> a function that computes the gradients once. Whatever it makes lies on
            the GPU if JAX has one and PyTorch too: `torch.set_default_device` is set meanwhile.
    """
    if importlib.util.find_spec("torch") is None:
        return {}
    torch = importlib.import_module("torch")
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    with torch.device(device):
        run = make(torch)

    def finished() -> None:
        run()
        if device == "cuda":
            torch.cuda.synchronize()

    return {TORCH: Eager(finished)}


def tensor(torch: Any, array: Any, *, requires_grad: bool = False) -> Any:
    """A JAX array as a tensor of its own."""
    made = torch.tensor(np.asarray(array), device=torch.get_default_device())
    return made.requires_grad_() if requires_grad else made


def of_module(
    torch: Any, module: Any, x: Any, objective: Callable[[Any], Any], of_input: bool = False
) -> Callable[[], Any]:
    """A function that computes the gradients of objective(module(x)) once.

    Args:
        torch: the module.
        module: an `nn.Module`.
        x: its input, a tensor.
        objective: of its output, a scalar.
        of_input: whether the gradient of x is wanted too.
    """
    wanted = list(module.parameters())
    if of_input:
        wanted.append(x.requires_grad_())
    return lambda: torch.autograd.grad(objective(module(x)), wanted)


def dense_network(torch: Any, widths: tuple[int, ...]) -> Any:
    """Linear layers with relu between them."""
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])
