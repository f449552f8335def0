"""conv_general_dilated for any kind of element: one matrix product for each place of the window."""

from __future__ import annotations

from typing import Any

import numpy as np


def convolve(params: Any, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """conv_general_dilated; what only meets padding or the gaps of a dilation is left out.

    At place p of the window, output i meets element t of the input, spread apart and padded, with
    t = stride i + dilation p - low; it is an input where t is a multiple of the spread, and
    otherwise a zero whose product needn't be taken. An output that meets zeros only is a plain 0.

    Args:
        params: of the equation, with padding as pairs.
        left: the input.
        right: the filter.
    """
    numbers = params["dimension_numbers"]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    x, w = np.transpose(left, numbers.lhs_spec), np.transpose(right, numbers.rhs_spec)
    examples, _, *space = x.shape
    features, channels, *kernel = w.shape
    rank, both = len(space), (batch_groups, groups)  # one of them is 1

    x = x.reshape(batch_groups, examples // batch_groups, groups, channels, *space)
    x = np.moveaxis(x, (0, 2, 1, 3), (0, 1, -2, -1))  # (*both, *space, examples, channels)
    w = w.reshape(*both, features // (groups * batch_groups), channels, *kernel)
    w = np.moveaxis(w, (0, 1, 3, 2), (-4, -3, -2, -1))  # (*kernel, *both, channels, features)

    settings = [
        {"stride": stride, "low": low, "spread": spread, "dilation": dilation}
        for stride, (low, _), spread, dilation in zip(
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ]
    places = [
        _outputs(n, k, sum(pair), **each)
        for n, k, pair, each in zip(space, kernel, params["padding"], settings, strict=True)
    ]
    out = np.zeros((*both, *places, *x.shape[-2:-1], w.shape[-1]), np.result_type(left, right))
    for tap in np.ndindex(*kernel):
        met = [
            _met(n, outputs, p, **each)
            for n, outputs, p, each in zip(space, places, tap, settings, strict=True)
        ]
        target = (slice(None), slice(None), *np.ix_(*(outputs for outputs, _ in met)))
        source = (slice(None), slice(None), *np.ix_(*(inputs for _, inputs in met)))
        patch = x[source]
        product = np.matmul(patch.reshape(*both, -1, channels), w[tap])
        out[target] += product.reshape(*patch.shape[:-1], w.shape[-1])
    # (batch_groups, groups, *places, examples, features) -> (examples, features, *places)
    out = np.moveaxis(out, (rank + 2, 0, 1, rank + 3), (0, 1, 2, 3))
    out = out.reshape(examples // batch_groups, features, *places)
    return np.transpose(out, np.argsort(numbers.out_spec))


def _outputs(n: int, k: int, pad: int, stride: int, spread: int, dilation: int, low: int) -> int:
    """How many places the window takes along one axis."""
    del low
    padded = pad + (spread * (n - 1) + 1 if n else 0)
    return max((padded - dilation * (k - 1) - 1) // stride + 1, 0)


def _met(
    n: int, outputs: int, p: int, *, stride: int, low: int, spread: int, dilation: int
) -> tuple[np.ndarray, np.ndarray]:
    """The outputs that meet an input at place p of the window, and those inputs."""
    place = np.arange(outputs) * stride + p * dilation - low
    inside = (place >= 0) & (place <= spread * (n - 1)) & (place % spread == 0)
    return np.flatnonzero(inside), place[inside] // spread
