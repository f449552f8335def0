# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Images: convolution, pooling, batch norm, skip paths
#
# A network for images is made of four parts whose backward passes people get wrong. This notebook
# derives each from the question that every backward pass answers: *which outputs did this number
# touch, and by how much?* Each formula is run in a few lines of `jnp` and compared with the layer
# of `manual_bp` and with autodiff. Gradients are compared without a tolerance: numbers are small
# integers, for which right means equal, or a judge of `verify` decides (notebook 2 is about these).
# All outputs are kept, so the notebook can be read without running anything.
#
# 1. Convolution: who touched whom
# 2. Pooling: where the error goes
# 3. Batch normalisation: three ways, and a test that cannot fail
# 4. Skip paths: the error's norm over depth
# 5. A ResNet on digits
# 6. Saliency is $dx$
# 7. Exercises, with a checker; solutions

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.patches import Rectangle

import manual_bp as mbp
from manual_bp.layers.batch_norm import Params as NormParams
from manual_bp.layers.batch_norm import Statistics
from manual_bp.layers.conv import Params as ConvParams
from verify import judges
from verify.training import digits

from checker import check_answer

BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#2E9E6B", "#D1495B", "#8E5EA2"
GREY = "#8A8A8A"
plt.rcParams.update(
    {
        "figure.dpi": 110,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)


def integers(rng, *shape):
    """Small integers as floats: sums and products of some hundreds of them are exact."""
    return jnp.array(rng.integers(-4, 5, size=shape), jnp.float32)


def equal(name, ours, *others):
    """Print whether all trees of arrays are equal, entry by entry, and fail unless they are."""
    leaves = jax.tree.leaves(ours)
    for other in others:
        for left, right in zip(leaves, jax.tree.leaves(other), strict=True):
            assert left.shape == right.shape and (left == right).all(), name
    assert any(np.any(leaf) for leaf in leaves), f"{name}: zeros are equal for no reason"
    print(f"{name:<50} equal: {sum(leaf.size for leaf in leaves)} entries, {1 + len(others)} ways")


def judged(name, verdict, right=True):
    """Print a judge's verdict, and fail unless it is the expected one."""
    said = "the same" if verdict.ok else f"not the same: {verdict.first_wrong}"
    print(f"{name:<50} {said}")
    assert verdict.ok == right, name


def numbered(axis, values, size=10, colours="RdBu_r", bound=None):
    """An image with its numbers written into it."""
    values = np.asarray(values)
    bound = bound or np.abs(values).max()
    axis.imshow(values, cmap=colours, vmin=-bound, vmax=bound)
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if abs(value) > 0.6 * bound else "black"
        text = f"{value:.3g}".replace("-", "−")
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)
    axis.set_xticks(range(values.shape[1]))
    axis.set_yticks(range(values.shape[0]))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def frame(axis, row, column, height=1, width=1, colour="black", **settings):
    """A frame around entries of an image."""
    place = (column - 0.5, row - 0.5)
    settings = {"fill": False, "linewidth": 2.2, "zorder": 3} | settings
    axis.add_patch(Rectangle(place, width, height, edgecolor=colour, **settings))


# %% [markdown]
# ## 1. Convolution: who touched whom
#
# Along one axis, with $k$ weights, stride $s$, and $x$ taken as 0 outside of its $n$ places:
#
# $$\text{out}[i, o] = \sum_p \sum_c x[s i + p - \text{low},\, c]\; W[p, c, o] + b[o].$$
#
# $i$ counts the places of the output, $p$ the weights, $c$ the channels that come in and $o$ those
# that go out. As everywhere in deep learning this is a *correlation*: the filter is not flipped.
# Along two axes every $i$, $p$ and setting is a pair; nothing else changes.
#
# **The question.** Which outputs touched the pixel $x[j]$, and through which weight? Those for
# which $s i + p - \text{low} = j$ has a solution:
#
# $$\boxed{\,dx[j, c] = \sum_{i,p\,:\; s i + p - \text{low} = j}\; \sum_o \text{dout}[i, o]\,
# W[p, c, o]\,}$$
#
# The picture shows it for the pixel $j = 3$ of eight, three weights and one zero at each end. Read
# the weights of the thick lines from left to right: $W_2, W_1, W_0$. The output to the *left* of
# the pixel saw it through its *right* weight. That is all that the flip is.

# %%
N, K, LOW, J = 8, 3, 1, 3
WEIGHT_COLOURS = (BLUE, GREEN, RED)


def box(axis, place, height, text, colour="white", ink="black"):
    """One number of a row of numbers."""
    size = 0.84
    patch = Rectangle((place - size / 2, height - 0.3), size, 0.6, facecolor=colour, edgecolor=GREY)
    patch.set_zorder(2)
    axis.add_patch(patch)
    axis.text(place, height, text, ha="center", va="center", color=ink, fontsize=9.5, zorder=3)


fig, axes = plt.subplots(2, 2, figsize=(12.5, 6.6))
for (above, below), s in zip(axes.T, (1, 2), strict=True):
    outputs = (N + 2 * LOW - K) // s + 1
    touched = {i: J + LOW - s * i for i in range(outputs) if 0 <= J + LOW - s * i < K}
    for i in range(outputs):
        for p in range(K):
            j = s * i + p - LOW
            if 0 <= j < N:
                mine = j == J
                colour = WEIGHT_COLOURS[p] if mine else "#D0D0D0"
                above.plot([j, s * i], [0.3, 1.9], color=colour, lw=3 if mine else 1, zorder=mine)
        box(above, s * i, 2.2, f"out$_{i}$", "#FFF3D6" if i in touched else "white")
    for i, p in touched.items():
        above.text(s * i, 2.72, f"by $W_{p}$", ha="center", color=WEIGHT_COLOURS[p], fontsize=11)
    for j in range(N):
        box(above, j, 0, f"$x_{j}$", "#FFF3D6" if j == J else "white")
        i, rest = divmod(j, s)
        inside = rest == 0 and i < outputs
        box(below, j, 1.2, f"dout$_{i}$" if inside else "0", "#FFF3D6" if inside else "#EEEEEE")
        box(below, j, 0, f"$dx_{j}$", "#FFF3D6" if j == J else "white")
    for q in range(K):
        p, j = K - 1 - q, J + q - (K - 1 - LOW)
        box(below, j, 2.2, f"$W_{p}$", WEIGHT_COLOURS[p], "white")
        below.plot([j, J], [0.9, 0.3], color=WEIGHT_COLOURS[p], lw=3, zorder=0)
    above.set_title(f"stride {s}, forward: what $x_{J}$ touched")
    note = "" if s == 1 else ", with zeros between the errors"
    below.set_title(f"stride {s}, backward: the flipped filter{note}")
    for axis in (above, below):
        axis.set(xlim=(-0.6, N - 0.4), ylim=(-0.5, 3.1), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    below.set_ylim(-0.5, 2.7)
fig.suptitle("The backward pass of a convolution slides the flipped filter over the error")
plt.show()

# %% [markdown]
# **As a convolution.** With stride 2 output $i$ lies above pixel $2i$. Let $e$ be the errors moved
# to these places, with $s - 1$ zeros between them: $e[s i] = \text{dout}[i]$. The condition
# $s i = j + \text{low} - p$ then needs no care any more; where no $i$ solves it, $e$ is 0:
#
# $$dx[j, c] = \sum_p \sum_o e[j + \text{low} - p,\, o]\, W[p, c, o]
# = \sum_q \sum_o e[j + q - (k - 1 - \text{low}),\, o]\; W[k - 1 - q, c, o],$$
#
# with $q = k - 1 - p$. This is the forward formula again, of $e$ instead of $x$: stride 1,
# $k - 1 - \text{low}$ zeros before it, the filter flipped, and the sum over $o$ where it was over
# $c$ (channels exchanged). The zeros behind it follow from the size of $dx$:
# $k - 1 - \text{high} + r$, where $r = (n + \text{low} + \text{high} - k) \bmod s$ counts the
# places at the end that no window reached.
#
# **The weights.** $W[p, c, o]$ met $x[s i + p - \text{low}, c]$ at every place $i$ of every example
# $m$, so
#
# $$\boxed{\,dW[p, c, o] = \sum_m \sum_i x[m, s i + p - \text{low}, c]\; \text{dout}[m, i, o]\,}
# \qquad db[o] = \sum_m \sum_i \text{dout}[m, i, o].$$
#
# It is the forward formula once more: $x$ correlated with the spread error $e$, which takes the
# filter's place; examples are summed as channels were. So one function does all three.


# %%
def correlate(x, W, stride, padding):
    """out[m, i, j, o]: the sum over the places (p, q) of the filter, one product for each."""
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
    rows, columns = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], W.shape[:2], strict=True))
    out = 0
    for p, q in np.ndindex(W.shape[:2]):
        row_end, column_end = p + stride * (rows - 1) + 1, q + stride * (columns - 1) + 1
        seen = x[:, p:row_end:stride, q:column_end:stride]  # the pixels that W[p, q] meets
        out = out + jnp.einsum("mijc,co->mijo", seen, W[p, q])
    return out


def conv_backward(W, x, dout, stride, padding):
    """(dW, db, dx) of correlate(x, W, stride, padding) + b."""
    between = (0, 0, stride - 1)
    zero = jnp.zeros((), dout.dtype)
    e = jax.lax.pad(dout, zero, [(0, 0, 0), between, between, (0, 0, 0)])
    sizes = list(zip(x.shape[1:3], W.shape[:2], padding, strict=True))
    rest = [(n + low + high - k) % stride for n, k, (low, high) in sizes]

    flipped = jnp.swapaxes(W[::-1, ::-1], 2, 3)  # flipped in space, channels exchanged
    around = [
        (k - 1 - low, k - 1 - high + r) for (_, k, (low, high)), r in zip(sizes, rest, strict=True)
    ]
    dx = correlate(e, flipped, 1, around)

    around = [(low, high - r) for (low, high), r in zip(padding, rest, strict=True)]
    by_channel = jnp.moveaxis(x, (3, 0), (0, 3))  # channels as examples, examples as channels
    dW = correlate(by_channel, jnp.moveaxis(e, 0, 2), 1, around)
    return jnp.moveaxis(dW, 0, 2), dout.sum((0, 1, 2)), dx


# %% [markdown]
# Now against the library's layer and against autodiff of `jax.lax.conv_general_dilated`, on small
# integers. Every product and sum of these is an integer far below $2^{24}$, so float32 holds it
# exactly, in any order of summation, and the three must be *equal*. Channels, features,
# heights and widths differ; some cases have different padding at the two ends, some a remainder.

# %%
CASES = {
    "3×3, stride 1, one zero around": (3, 3, 1, ((1, 1), (1, 1))),
    "3×3, stride 2, one zero around": (3, 3, 2, ((1, 1), (1, 1))),
    "2×3, stride 3, no padding": (2, 3, 3, ((0, 0), (0, 0))),
    "4×1, stride 2, padding 2 and 1": (4, 1, 2, ((2, 1), (0, 0))),
}


def three_backwards(layer, W, b, x, dout):
    """(dW, db, dx) by the lines above, by the library, by autodiff."""
    stride, padding = layer.stride, layer.padding
    by_hand = conv_backward(W, x, dout, stride, padding)

    params = ConvParams(W, b)
    out, residuals = layer.forward(params, x)
    (dW, db), dx = layer.backward(params, residuals, dout)

    def reference(W, b, x):
        axes = ("NHWC", "HWIO", "NHWC")
        steps = (stride, stride)
        return jax.lax.conv_general_dilated(x, W, steps, padding, dimension_numbers=axes) + b

    expected, pull = jax.vjp(reference, W, b, x)
    return (out, correlate(x, W, stride, padding) + b, expected), (
        by_hand,
        (dW, db, dx),
        pull(dout),
    )


rng = np.random.default_rng(0)
for name, (k1, k2, stride, padding) in CASES.items():
    layer = mbp.Conv(5, (k1, k2), stride=stride, padding=padding)
    W, b, x = integers(rng, k1, k2, 2, 5), integers(rng, 5), integers(rng, 3, 5, 4, 2)
    out_shape = jax.eval_shape(lambda: correlate(x, W, stride, padding)).shape
    dout = integers(rng, *out_shape)
    outs, gradients = jax.jit(three_backwards, static_argnums=0)(layer, W, b, x, dout)
    equal(f"{name}: out", *outs)
    equal(f"{name}: dW, db, dx", *gradients)

# %% [markdown]
# Small integers could in principle agree by luck. The judge of exact fractions settles it: random
# doubles, every operation without rounding, `==`. And it must turn red when the flip is forgotten,
# which keeps every shape as it is where the filter is square and the channels are as many.

# %%
W, x, dout = (
    rng.normal(size=(3, 3, 2, 2)),
    rng.normal(size=(1, 5, 4, 2)),
    rng.normal(size=(1, 3, 2, 2)),
)
PADDING = ((1, 1), (1, 1))


def by_library(W, x, dout):
    """dW and dx of the layer of the library."""
    layer = mbp.Conv(2, (3, 3), stride=2, padding=PADDING, bias=False)
    params = ConvParams(W, ())
    _, residuals = layer.forward(params, x)
    (dW, _), dx = layer.backward(params, residuals, dout)
    return {"dW": dW, "dx": dx}


def by_hand(W, x, dout):
    """dW and dx by the lines above."""
    dW, _, dx = conv_backward(W, x, dout, 2, PADDING)
    return {"dW": dW, "dx": dx}


def not_flipped(W, x, dout):
    """The same with the flip forgotten."""
    _, _, dx = conv_backward(W[::-1, ::-1], x, dout, 2, PADDING)
    return by_hand(W, x, dout) | {"dx": dx}


def not_exchanged(W, x, dout):
    """The same with the channels not exchanged."""
    _, _, dx = conv_backward(jnp.swapaxes(W, 2, 3), x, dout, 2, PADDING)
    return by_hand(W, x, dout) | {"dx": dx}


for backward in (by_hand, not_flipped, not_exchanged):
    verdict = judges.same(backward, by_library, W, x, dout, judge=judges.rational)
    judged(f"as fractions, {backward.__name__}", verdict, right=backward is by_hand)

# %% [markdown]
# **In two dimensions.** The left column shows which outputs saw the framed pixel $(3, 3)$, and
# through which weight, the middle one the flipped filter over the errors. With stride 2 the filter
# lies on zeros with five of its nine weights. How many of them meet an error depends on the pixel:
# the right column counts the outputs that saw each pixel. The counts are the library's $dx$, for
# weights and errors of 1. With stride 2 they form the checkerboard that is known from gradients,
# and from images made by transposed convolutions, which are this backward pass used forward
# (Odena et al., 2016).

# %%
SIDE, PIXEL = 7, (3, 3)
fig, axes = plt.subplots(2, 3, figsize=(11.5, 7.6))
for (first, second, third), s in zip(axes, (1, 2), strict=True):
    side = (SIDE + 2 - 3) // s + 1
    saw = np.zeros((side, side))
    for i, j in np.ndindex(side, side):
        p, q = PIXEL[0] + 1 - s * i, PIXEL[1] + 1 - s * j
        if 0 <= p < 3 and 0 <= q < 3:
            saw[i, j] = 1
            first.text(j, i, f"$W_{{{p}{q}}}$", ha="center", va="center", fontsize=12)
    first.imshow(saw, cmap="Wistia", vmin=0, vmax=2.5, alpha=np.where(saw, 1, 0.12))
    first.set(title=f"stride {s}: outputs that saw $x_{{33}}$", xlabel="output column")
    first.set_ylabel("output row")
    first.set_xticks(range(side))
    first.set_yticks(range(side))
    first.set_xticks(np.arange(side + 1) - 0.5, minor=True)
    first.set_yticks(np.arange(side + 1) - 0.5, minor=True)
    first.grid(which="minor", color="white", linewidth=2)

    spread = np.zeros((SIDE, SIDE))
    spread[::s, ::s] = 1
    second.imshow(spread, cmap="Greys", vmin=0, vmax=5)
    for i, j in np.ndindex(SIDE, SIDE):
        text = f"d$_{{{i // s}{j // s}}}$" if spread[i, j] else "0"
        inside = max(abs(i - PIXEL[0]), abs(j - PIXEL[1])) <= 1
        second.text(
            j, i + 0.22 * inside, text, ha="center", va="center", fontsize=9, color="#444444"
        )
        if inside:
            p, q = PIXEL[0] + 1 - i, PIXEL[1] + 1 - j
            used = spread[i, j] > 0
            second.text(
                j,
                i - 0.2,
                f"$W_{{{p}{q}}}$",
                ha="center",
                va="center",
                fontsize=10.5,
                color=RED if used else "#BBBBBB",
            )
    frame(second, 2, 2, 3, 3, RED)
    second.set_xticks(range(SIDE))
    second.set_yticks(range(SIDE))
    second.set(title="the error $e$, and the flipped filter", xlabel="column", ylabel="row")

    layer = mbp.Conv(1, (3, 3), stride=s, padding=((1, 1), (1, 1)))
    ones = jnp.ones((1, SIDE, SIDE, 1))
    params = jax.tree.map(jnp.ones_like, layer.init(jax.random.key(0), ones))
    out, residuals = layer.forward(params, ones)
    _, counts = layer.backward(params, residuals, jnp.ones_like(out))
    numbered(third, counts[0, ..., 0], colours="PuOr", bound=12)
    frame(third, *PIXEL)
    third.set(title="outputs that saw each pixel", xlabel="column", ylabel="row")
    assert counts[0, *PIXEL, 0] == saw.sum() == (9 if s == 1 else 4)
for axis in axes.flat:
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
fig.suptitle("A pixel's error comes from the outputs that saw it")
plt.show()

# %% [markdown]
# **The weights' gradient, on a digit.** One weight meets one window of the image, as large as the
# output: $dW_{02}$ is the sum, over the frame, of image times error. Pixels are integers here (0 to
# 16, as in the data set), and so are the errors.

# %%
x_train, x_test, y_train, y_test = digits()
x_train, x_test = (jnp.array(each).reshape(-1, 8, 8, 1) for each in (x_train, x_test))
y_train, y_test = jnp.array(y_train), jnp.array(y_test)

image, dout = 16 * x_train[:1], integers(rng, 1, 6, 6, 1)
layer = mbp.Conv(1, (3, 3), padding="VALID")
params = layer.init(jax.random.key(0), image)
out, residuals = layer.forward(params, image)
(dW, _), _ = layer.backward(params, residuals, dout)
assert dW[0, 2, 0, 0] == (image[0, 0:6, 2:8, 0] * dout[0, ..., 0]).sum()

fig, axes = plt.subplots(1, 3, figsize=(11.5, 4.5))
numbered(axes[0], image[0, ..., 0], 8.5, "PuOr", bound=30)
frame(axes[0], 0, 2, 6, 6, RED)
axes[0].set(title="$x$; framed: what $W_{02}$ met")
numbered(axes[1], dout[0, ..., 0], 9.5, bound=8)
frame(axes[1], 0, 0, 6, 6, RED)
axes[1].set(title="dout")
numbered(axes[2], dW[..., 0, 0], 12)
frame(axes[2], 0, 2, colour=RED)
axes[2].set(title="$dW = x$ correlated with dout")
for axis in axes:
    axis.set(xlabel="column", ylabel="row")
fig.suptitle("$dW$ is a correlation: each weight's window of the image, times the error")
plt.show()

# %% [markdown]
# ## 2. Pooling: where the error goes
#
# **Maximum.** The output of a window is the pixel that won, and stays that pixel when $x$ changes a
# little. So the whole error of the window goes to its winner, and the rest get nothing:
#
# $$dx[p] = \sum_{\text{windows } j \text{ won by } p} \text{dout}[j].$$
#
# Where windows overlap, one pixel may win several and collects all their errors. At a **tie** the
# maximum has a kink and no derivative. The convention here, and that of `jax.lax.reduce_window`, is
# that the first of the largest, row by row, wins. (Any split of the error among them would be a
# subgradient; exercise 3.) Ties are not rare: behind a relu whole windows are 0.
#
# **Average.** Every pixel has the same share: $dx[p] = \sum_{j \ni p} \text{dout}[j] / k^2$ for
# windows of $k \times k$.

# %%
x_small = jnp.array([[1, 3, 5, 5], [2, 0, 5, 1], [0, 0, 7, 2], [0, 0, 3, 8]], jnp.float32)
x_large = jnp.array(
    [[1, 2, 0, 3, 1], [4, 1, 2, 0, 2], [0, 3, 9, 1, 5], [2, 0, 1, 3, 0], [1, 5, 2, 0, 11]],
    jnp.float32,
)
small_dout = jnp.array([[4, 8], [-4, 12]], jnp.float32)
large_dout = 9 * small_dout  # divisible by 9, so that an average of nine is exact


def pool_by_autodiff(x, dout, start, operation, side, stride, divisor):
    """dx of a pooling layer by autodiff of jax.lax.reduce_window."""
    sizes, steps = (1, side, side, 1), (1, stride, stride, 1)

    def pool(x):
        return jax.lax.reduce_window(x, start, operation, sizes, steps, "VALID") / divisor

    return jax.vjp(pool, x)[1](dout)[0]


fig, axes = plt.subplots(2, 4, figsize=(12.5, 6.5))
places = ((x_small, small_dout, 2, 2), (x_large, large_dout, 3, 2))
for row, (image, dout, side, stride) in zip(axes, places, strict=True):
    x, error = image[None, ..., None], dout[None, ..., None]
    found = []
    for layer, start, operation, divisor in (
        (mbp.MaxPool((side, side), (stride, stride)), -jnp.inf, jax.lax.max, 1),
        (mbp.AvgPool((side, side), (stride, stride)), 0.0, jax.lax.add, side**2),
    ):
        _, residuals = layer.forward((), x)
        _, dx = layer.backward((), residuals, error)
        auto = pool_by_autodiff(x, error, start, operation, side, stride, divisor)
        equal(f"{layer}: dx", dx, auto)
        found.append(dx[0, ..., 0])
    numbered(row[0], image, bound=16, colours="PuOr")
    for a, b in np.ndindex(2, 2):
        top, left = a * stride, b * stride
        window = image[top : top + side, left : left + side]
        i, j = np.unravel_index(np.argmax(window), window.shape)  # the first of the largest
        frame(row[0], top + i, left + j, colour=RED)
        dashed = {"colour": (BLUE, ORANGE, GREEN, PURPLE)[2 * a + b], "ls": "--", "linewidth": 1.8}
        frame(row[0], top + 0.06, left + 0.06, side - 0.12, side - 0.12, **dashed)
        frame(row[1], a + 0.03, b + 0.03, 0.94, 0.94, **dashed)
    bound = 1.4 * float(jnp.abs(dout).max())
    for axis, values in zip(row[1:], (dout, *found), strict=True):
        numbered(axis, values, bound=bound)
    row[0].set(title=f"$x$; windows of {side}×{side}, stride {stride}")
    row[1].set(title="dout")
    row[2].set(title="$dx$, maximum")
    row[3].set(title="$dx$, average")
for axis in axes.flat:
    axis.set(xlabel="column", ylabel="row")
fig.suptitle("The maximum sends the error to the winner (red), the average spreads it")
plt.show()

# %% [markdown]
# Above, windows do not overlap; two of them have ties. Below, they overlap by one row and column:
# the 9 in the middle lies in all four, wins three of them, and its error is the sum of three.
#
# ## 3. Batch normalisation: three ways, and a test that cannot fail
#
# For one channel, with $i$ counting the $n$ values of it in the batch (examples and pixels) and
# $\langle v \rangle = \frac1n \sum_i v_i$:
#
# $$\mu = \langle x \rangle, \quad \sigma^2 = \langle (x - \mu)^2 \rangle, \quad
# r = \frac{1}{\sqrt{\sigma^2 + \epsilon}}, \quad \hat x = (x - \mu)\, r, \quad
# \text{out} = \gamma \hat x + \beta.$$
#
# Every $x_i$ touches *all* $n$ outputs: through $\hat x_i$ itself, through $\mu$, and through
# $\sigma^2$. This is why a derivative that treats $\mu$ and $\sigma^2$ as constants is wrong.
#
# **First way: the graph, edge by edge.** Go through $x \to \mu \to \sigma^2 \to r \to \hat x$ from
# its end, with $g = \gamma\, \text{dout}$, which is $d\hat x$. From
# $\partial r / \partial \sigma^2 = -\tfrac12 r^3$:
#
# $$d\sigma^2 = -\tfrac12 r^3 \sum_i g_i (x_i - \mu), \qquad
# d\mu = -r \sum_i g_i - d\sigma^2\, \tfrac2n \sum_i (x_i - \mu),$$
#
# $$dx_i = r g_i + d\sigma^2\, \tfrac2n (x_i - \mu) + \tfrac1n d\mu.$$
#
# **Second way: two terms.** Deviations from a mean sum to zero, so $d\mu = -r \sum_i g_i$. And with
# $x_i - \mu = \hat x_i / r$ the middle term becomes $-\tfrac rn \hat x_i \sum_j g_j \hat x_j$:
#
# $$dx = r g - \tfrac rn \sum_j g_j - \tfrac rn\, \hat x \sum_j g_j \hat x_j.$$
#
# **Third way: the closed form.** $\gamma$ is one number for the channel and leaves the sums, which
# are then the gradients of the parameters, $d\beta = \sum_i \text{dout}_i$ and
# $d\gamma = \sum_i \text{dout}_i \hat x_i$:
#
# $$\boxed{\,dx = \gamma r \big(\text{dout} - \tfrac1n (d\beta + \hat x\, d\gamma)\big)\,}$$
#
# Two sums serve for all three gradients. The library computes this form.

# %%
EPS = 1e-5
OVER = (0, 1, 2)  # examples, rows, columns: all axes but the channels


def count(x):
    """n, the values of one channel."""
    return x.size // x.shape[-1]


def inverse_deviation(x):
    """r, for each channel."""
    return 1 / jnp.sqrt(((x - x.mean(OVER)) ** 2).mean(OVER) + EPS)


def edge_by_edge(gamma, x, r, dout):
    """dx by the first way."""
    n, centred, g = count(x), x - x.mean(OVER), gamma * dout
    dvariance = -(r**3) * (g * centred).sum(OVER) / 2
    dmean = -r * g.sum(OVER) - dvariance * 2 * centred.sum(OVER) / n
    return r * g + dvariance * 2 * centred / n + dmean / n


def two_terms(gamma, x, r, dout):
    """dx by the second way."""
    n, normalized, g = count(x), (x - x.mean(OVER)) * r, gamma * dout
    return r * g - r * g.sum(OVER) / n - r * normalized * (g * normalized).sum(OVER) / n


def closed_form(gamma, x, r, dout):
    """dx by the third way."""
    n, normalized = count(x), (x - x.mean(OVER)) * r
    dbeta, dgamma = dout.sum(OVER), (dout * normalized).sum(OVER)
    return gamma * r * (dout - (dbeta + normalized * dgamma) / n)


# %% [markdown]
# **All equal, in fractions.** The three use $r$ but never what $r$ is. Take it as an argument, any
# number, and each is a rational function: sums, products, divisions. Over exact fractions they must
# be *equal*, and the steps between them are proved at this point. (At a random point two different
# rational functions agree with probability zero.)
#
# **And equal to autodiff, in growing precision.** Autodiff has the square root in it, for which
# there are no fractions. There the judge computes with 20 and with 40 digits: the difference of a
# right formula shrinks with the precision, that of a wrong one does not. Here the library's layer
# is judged too, with $d\gamma$ and $d\beta$.

# %%
gamma, beta, r = rng.normal(size=(3, 2))
x, dout = rng.normal(size=(2, 3, 2, 3, 2)) + 1  # each (3, 2, 3, 2): n = 18, 2 channels

for way in (two_terms, closed_form):
    verdict = judges.same(edge_by_edge, way, gamma, x, r, dout, judge=judges.rational)
    judged(f"fractions: edge_by_edge, {way.__name__}", verdict)


def norm_by_autodiff(gamma, beta, x, dout):
    """(dgamma, dbeta, dx) by autodiff of the definition."""

    def batch_norm(gamma, beta, x):
        return gamma * (x - x.mean(OVER)) / jnp.sqrt(x.var(OVER) + EPS) + beta

    return jax.vjp(batch_norm, gamma, beta, x)[1](dout)


def norm_by_library(gamma, beta, x, dout):
    """The same by the library's layer."""
    layer, params = mbp.BatchNorm(EPS), NormParams(gamma, beta)
    _, residuals = layer.forward(params, x)
    (dgamma, dbeta), dx = layer.backward(params, residuals, dout)
    return dgamma, dbeta, dx


verdict = judges.same(norm_by_library, norm_by_autodiff, gamma, beta, x, dout, judge=judges.digits)
judged("digits: library, autodiff", verdict)


def dx_of(way):
    """dx as a function of what the layer is given."""
    return lambda gamma, beta, x, dout: way(gamma, x, inverse_deviation(x), dout)


def true_dx(*args):
    """dx by autodiff."""
    return norm_by_autodiff(*args)[2]


for way in (edge_by_edge, two_terms, closed_form):
    verdict = judges.same(dx_of(way), true_dx, gamma, beta, x, dout, judge=judges.digits)
    judged(f"digits: {way.__name__}, autodiff", verdict)

# %% [markdown]
# **What the closed form says.** $\langle \text{dout} \rangle + \hat x \langle \text{dout}\,\hat x
# \rangle$ is the straight line fitted to dout over $\hat x$ by least squares. (With $\epsilon > 0$
# nearly: $\langle \hat x^2 \rangle$ is $\sigma^2 / (\sigma^2 + \epsilon)$, not 1.) So $dx$ is
# $\gamma r$ times the *residuals* of this fit. What the layer takes from the error is the part that
# would shift or rescale the channel, since out does not depend on the shift or scale of $x$.
#
# **A test that cannot fail.** A common test differentiates `out.sum()`, so dout is all ones. Ones
# lie on a straight line: the residuals, and the true $dx$, are zero (right panel). A backward pass
# that returns zeros passes that test, and so does one without the term through the deviation, even
# when the judge is exact: the table is judged in fractions, against the closed form.

# %%
normalized = (x - x.mean(OVER)) * inverse_deviation(x)
fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True, sharey=True)
for axis, (name, error) in zip(
    axes, {"random": dout, "all ones": np.ones_like(x)}.items(), strict=True
):
    u, v = np.ravel(normalized[..., 0]), np.ravel(error[..., 0])
    fitted = v.mean() + u * (v * u).mean()
    ends = np.array([-2.2, 2.2])
    axis.plot(ends, v.mean() + ends * (v * u).mean(), color=GREY, label="fitted line")
    axis.vlines(u, fitted, v, color=RED, linewidth=2, label=r"residual: $dx / (\gamma r)$")
    axis.plot(u, v, "o", color=BLUE, label="dout", markersize=5)
    axis.set(xlabel=r"$\hat x$ (standard deviations)", ylabel="dout", title=f"dout is {name}")
axes[0].legend(fontsize=10)
fig.suptitle("Batch norm's $dx$ is what a straight line leaves of the error")
plt.show()


def variant(mean=1, deviation=1, factor=1):
    """A backward pass with terms left out or scaled."""

    def backward(gamma, x, r, dout):
        n, normalized = count(x), (x - x.mean(OVER)) * r
        dbeta, dgamma = dout.sum(OVER), (dout * normalized).sum(OVER)
        terms = mean * dbeta + deviation * normalized * dgamma
        return factor * gamma * r * (dout - terms / n)

    return backward


VARIANTS = {
    "right": variant(),
    "zeros": variant(factor=0),
    "twice the right one": variant(factor=2),
    "through the deviation: left out": variant(deviation=0),
    "through the deviation: wrong sign": variant(deviation=-1),
    "through the mean: left out": variant(mean=0),
    "statistics taken for constants": variant(mean=0, deviation=0),
}
passes = {}
print(f"{'backward pass':<36}{'dout all ones':<16}random dout")
for name, backward in VARIANTS.items():
    passes[name] = [
        judges.same(backward, closed_form, gamma, x, r, error, judge=judges.rational).ok
        for error in (np.ones_like(x), dout)
    ]
    print(f"{name:<36}" + "".join(f"{'passes' if ok else 'fails':<16}" for ok in passes[name]))
assert [all(each) for each in passes.values()] == [True, *[False] * (len(VARIANTS) - 1)]
assert sum(ones for ones, _ in passes.values()) == 5

# %% [markdown]
# Even the exact judge can only judge what it is shown. Four of six mistakes pass with ones; none
# with a random error. (The same holds with any loss that ends in a sum over this layer's output.)
#
# **Training and not training.** In training the outputs of one example depend on the others in the
# batch. Not training, an example is normalised by *running statistics*, an average of those that
# the layer *observed* in training batches:
#
# - `layer.observe(residuals)` gives the mean and variance of a batch, and `mbp.manual_pass` those
#   of all layers of a network, in the field `observed`;
# - `optax.incremental_update(observed, running, 0.1)` is $0.9\,\text{running} +
#   0.1\,\text{observed}$;
# - `network.inference()` is the network with the same parameters that takes `statistics=...`. Its
#   batch norms are affine maps, with one term in their backward pass:
#   $dx = \gamma\, \text{dout} / \sqrt{\text{variance} + \epsilon}$.
#
# The matrices show how much the error at the output of one example moves each example's $dx$.

# %%
layer = mbp.BatchNorm(EPS)
batch = jnp.array(rng.normal(size=(6, 3, 3, 2)) + 1, jnp.float32)
error = jnp.array(rng.normal(size=batch.shape), jnp.float32)
params = NormParams(jnp.array(gamma, jnp.float32), jnp.array(beta, jnp.float32))
out, residuals = layer.forward(params, batch)
observed = layer.observe(residuals)
running = Statistics(jnp.zeros(2), jnp.ones(2))
running = optax.incremental_update(observed, running, 0.1)

frozen = layer.inference()
_, frozen_residuals = frozen.forward(params, batch, statistics=running)
_, frozen_dx = frozen.backward(params, frozen_residuals, error)
equal(
    "not training: one term",
    frozen_dx,
    params.scale * jax.lax.rsqrt(running.variance + EPS) * error,
)


def moved_by_each(layer, residuals):
    """The norm of each example's dx (columns) when the error arrives at one example (rows)."""

    def arriving_at(example):
        alone = error * (jnp.arange(6) == example)[:, None, None, None]
        return jnp.sqrt((layer.backward(params, residuals, alone)[1] ** 2).sum(OVER[1:] + (3,)))

    return jax.vmap(arriving_at)(jnp.arange(6))


fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.5))
matrices = {
    "training": moved_by_each(layer, residuals),
    "not training: network.inference()": moved_by_each(frozen, frozen_residuals),
}
for axis, (name, matrix) in zip(axes, matrices.items(), strict=True):
    image = axis.imshow(matrix, cmap="Purples", vmin=0)
    for (row, column), value in np.ndenumerate(np.asarray(matrix)):
        ink = "white" if value > 0.6 * matrix.max() else "black"
        text = "0" if value == 0 else f"{value:.2f}"
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    axis.set(xlabel="example whose $dx$ is shown", ylabel="example where the error arrives")
    axis.set(title=name)
    axis.spines[:].set_visible(False)
    fig.colorbar(image, ax=axis, shrink=0.8, label="norm of $dx$")
fig.suptitle("In training every example's error reaches all examples")
plt.show()
off_diagonal = ~np.eye(6, dtype=bool)
assert (matrices["training"] > 0).all()
assert (matrices["not training: network.inference()"][off_diagonal] == 0).all()

# %% [markdown]
# ## 4. Skip paths: the error's norm over depth
#
# How large is the error that arrives at the first of many blocks? Let the body be
# $f(A) = \text{Conv}(\text{relu}(A))$, its weights drawn as He et al. (2015) have it: variance
# $2 / (9 C)$ for $3 \times 3$ places and $C$ channels. Four stacks:
#
# | stack | forward | mean square of $dA$, per block |
# |---|---|---|
# | plain | $A^{[l+1]} = f(A^{[l]})$ | $1$ |
# | plain, normalised | $A^{[l+1]} = f(\text{BN}(A^{[l]}))$ | $\pi / (\pi - 1) \approx 1.47$ |
# | skip | $A^{[l+1]} = A^{[l]} + f(A^{[l]})$ | $1 + 1 = 2$ |
# | skip, normalised | $A^{[l+1]} = A^{[l]} + f(\text{BN}(A^{[l]}))$ | $1 + 1/\sigma_l^2$ |
#
# Where the last column comes from, for wide layers, and with weights taken as independent of what
# they meet on the way back:
#
# - **Body.** Each entry of $dA$ collects $9C$ products of an error and a weight, of mean square
#   $9C \cdot 2/(9C) = 2$ times the error's; relu lets half of the entries through: a factor 1.
# - **Norm.** It adds the factor $r^2 = 1/\sigma^2$. (Of the two other terms little remains: they
#   remove two directions of $n$.) With $\hat x$ standard normal, relu's output has mean square
#   $\tfrac12$ and mean $1/\sqrt{2\pi}$. The convolution's output has then mean square
#   $2 \cdot \tfrac12 = 1$, of which $2 \cdot \tfrac1{2\pi} = \tfrac1\pi$ is the square of its
#   channel's mean. What is left is the variance, $\sigma^2 = 1 - \tfrac1\pi$. A *plain* stack with
#   batch norm explodes (Yang et al., 2019).
# - **Skip.** $dA^{[l]} = dA^{[l+1]} + d\text{body}$: two errors, uncorrelated, add in mean square.
# - **Both.** Each block adds variance $1 - \tfrac1\pi$ to the path, so
#   $\sigma_l^2 = \sigma_0^2 + (1 - \tfrac1\pi)\, l$, and the norm divides the body's error by it.
#   The product of $1 + 1/\sigma_l^2$ grows like a *power* of depth, with exponent $\pi/(\pi - 1)$,
#   and no longer exponentially. (De and Smith, 2020, on the variance that grows linearly.)
#
# `mbp.stack` repeats a block with parameters of its own, compiled once, and `mbp.intermediates`
# gives the errors of all its steps from one walk back. A skip hands its error on to its body
# unchanged, so the error that arrives at the body's convolution is $dA^{[l]}$ in all four. The
# weights, too, are the same in all four.

# %%
DEPTH, CHANNELS = 48, 32
deep_x = jnp.array(rng.normal(size=(8, 16, 16, CHANNELS)), jnp.float32)
deep_y = jnp.array(rng.integers(10, size=8))
body = (mbp.relu, mbp.Conv(CHANNELS, (3, 3)))
plain = mbp.sequential(mbp.stack(mbp.sequential(*body), DEPTH), mbp.Flatten(), mbp.Dense(10))
(((_, conv),), _, dense) = jax.jit(plain.init)(jax.random.key(3), deep_x)
norm = NormParams(jnp.ones((DEPTH, CHANNELS)), jnp.zeros((DEPTH, CHANNELS)))

STACKS = {  # block, its parameters, where its convolution stands in it, colour
    "plain": (mbp.sequential(*body), ((), conv), "2", BLUE),
    "plain, normalised": (mbp.sequential(mbp.BatchNorm(), *body), (norm, (), conv), "3", ORANGE),
    "skip": (mbp.skip(mbp.sequential(*body)), (((), conv),), "1.2", RED),
    "skip, normalised": (
        mbp.skip(mbp.sequential(mbp.BatchNorm(), *body)),
        ((norm, (), conv),),
        "1.3",
        GREEN,
    ),
}
variance = 1 + (1 - 1 / np.pi) * np.arange(DEPTH)
FACTORS = {
    "plain": np.ones(DEPTH),
    "plain, normalised": np.full(DEPTH, np.pi / (np.pi - 1)),
    "skip": np.full(DEPTH, 2.0),
    "skip, normalised": 1 + 1 / variance,
}


def error_over_depth(block, params, place):
    """The root mean square of dA[l] for l = 1 ... DEPTH, by one walk."""
    network = mbp.sequential(mbp.stack(block, DEPTH), mbp.Flatten(), mbp.Dense(10))
    steps = mbp.intermediates(((params,), (), dense), deep_x, deep_y, network=network)
    return np.sqrt(np.mean(np.asarray(steps[f"dout1.1.{place}"]) ** 2, axis=(1, 2, 3, 4)))


blocks = np.arange(1, DEPTH + 1)
grown = {}
fig, axis = plt.subplots(figsize=(9.5, 5))
for name, (block, params, place, colour) in STACKS.items():
    size = error_over_depth(block, params, place)
    assert size.shape == (DEPTH,)
    # dA[l] has come through blocks l+1 ... DEPTH; block l+1 normalises A[l].
    theory = np.sqrt(np.append(np.cumprod(FACTORS[name][:0:-1])[::-1], 1.0))
    axis.semilogy(blocks, size / size[-1], color=colour, linewidth=2, label=name)
    axis.semilogy(blocks, theory, ":", color=colour, linewidth=1.6)
    grown[name] = size[0] / size[-1]
    print(f"{name:<20} first over last block: {grown[name]:>12.3g}   theory {theory[0]:>12.3g}")
axis.plot([], [], ":", color="black", label="theory: wide layers, no border")
axis.set(
    xlabel="block $l$ (the error travels from right to left)",
    ylabel=f"rms of $dA^{{[l]}}$ relative to $dA^{{[{DEPTH}]}}$",
    xlim=(1, DEPTH),
)
axis.legend()
fig.suptitle("A skip alone lets errors explode; with a norm in its body they grow gently")
plt.show()
assert grown["plain"] < 1 < grown["skip, normalised"] < 30
assert grown["skip, normalised"] < grown["plain, normalised"] < grown["skip"]

# %% [markdown]
# The plain stack, which should keep its error, loses some in every block. A reason is the border: a
# pixel there was seen by fewer outputs (section 1), so the mean square that arrives through a body
# is averaged over nine places of which some lie outside. With this counted, pixel by pixel:

# %%
average_of_nine = jnp.full((3, 3, 1, 1), 1 / 9)
for name, kept in (("plain", 0), ("skip", 1)):
    mean_square = jnp.ones((1, 16, 16, 1))
    for _ in range(DEPTH - 1):
        through_body = correlate(mean_square, average_of_nine, 1, ((1, 1), (1, 1)))
        mean_square = kept * mean_square + through_body
    expected = float(jnp.sqrt(mean_square.mean()))
    print(f"{name:<6} measured {grown[name]:>10.3g}   theory with the border {expected:>10.3g}")

# %% [markdown]
# What remains is that theory is a mean over all draws of wide layers, and this is one draw of 32
# channels.
#
# So a skip path alone lets errors explode, and so does a norm alone. Together they do not: the norm
# makes the share of each body smaller as the path grows, and the error grows as a power of depth.
#
# ## 5. A ResNet on digits
#
# All parts together: `mbp.resnet` has such blocks, with two convolutions in each body, `mbp.lenet`
# is the older design of convolution, tanh and average pooling. Data are the 1797 digits of
# scikit-learn, $8 \times 8$ pixels, a quarter for testing. Each step is one `mbp.manual_pass`:
# loss, gradient, and the statistics that the batch norms observed.


# %%
def train(network, epochs, rate, batch=64):
    """(params before, after, running statistics, losses of all steps, accuracy of all epochs)."""
    steps = len(x_train) // batch
    adam = optax.adam(optax.cosine_decay_schedule(rate, epochs * steps))

    average = jax.jit(optax.incremental_update)

    @jax.jit
    def step(params, state, x, y):
        found = mbp.manual_pass(params, x, y, network=network)
        updates, state = adam.update(found.grads, state, params)
        return optax.apply_updates(params, updates), state, found.observed, found.loss

    params = initial = jax.jit(network.init)(jax.random.key(0), x_train[:batch])
    state, running = adam.init(params), None
    losses, accuracies = [], []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(x_train))
        for chosen in order[: steps * batch].reshape(steps, batch):
            params, state, observed, loss = step(params, state, x_train[chosen], y_train[chosen])
            running = observed if running is None else average(observed, running, 0.1)
            losses.append(float(loss))
        taken = {"statistics": running} if network.inference().takes else {}
        logits = mbp.predict(params, x_test, network=network, **taken)
        accuracies.append(float((logits.argmax(-1) == y_test).mean()))
    return initial, params, running, losses, accuracies


resnet, lenet = mbp.resnet(widths=(16, 32), blocks=2), mbp.lenet()
EPOCHS = 8
runs = {"ResNet": train(resnet, EPOCHS, 5e-3), "LeNet": train(lenet, EPOCHS, 5e-3)}
for name, (_, params, _, losses, accuracies) in runs.items():
    count_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(
        f"{name}: {count_params} parameters, last loss {losses[-1]:.4f}, "
        f"test accuracy {accuracies[-1]:.1%}"
    )
assert runs["ResNet"][-1][-1] > 0.98 and runs["LeNet"][-1][-1] > 0.9

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for (name, (_, _, _, losses, accuracies)), colour in zip(runs.items(), (BLUE, ORANGE), strict=True):
    per_epoch = len(losses) // EPOCHS
    left.semilogy(np.arange(1, len(losses) + 1), losses, color=colour, linewidth=0.7, alpha=0.4)
    means = np.mean(np.reshape(losses, (EPOCHS, -1)), axis=1)
    left.semilogy(
        per_epoch * (np.arange(EPOCHS) + 0.5), means, "o-", color=colour, label=name, ms=4
    )
    right.plot(
        range(1, EPOCHS + 1), 100 * np.array(accuracies), "o-", color=colour, label=name, ms=4
    )
left.set(xlabel="step (64 examples)", ylabel="cross-entropy (nats)")
left.set_title("training loss; circles: mean of an epoch")
right.set(xlabel="epoch", ylabel="right (%)", title=f"accuracy on {len(y_test)} test digits")
right.set_ylim(None, 100.5)
left.legend()
fig.suptitle("Trained by hand-derived gradients; tested by network.inference()")
plt.show()

# %% [markdown]
# **Not training is another function.** Handed one digit at a time, the training network normalises
# each digit by its own mean and variance, which it never did in training. The last norm then gives
# every channel of every digit mean 0 and variance 1 (before $\gamma$ and $\beta$), and relu's
# average over the image, all that the classifier sees, hardly tells one digit from another.

# %%
_, trained, running, *_ = runs["ResNet"]


@jax.jit
def one_by_one(params, images):
    """Logits of the training network, each image a batch of its own."""
    return jax.vmap(lambda image: resnet.forward(params, image[None])[0][0])(images)


logits = mbp.predict(trained, x_test, network=resnet, statistics=running)
alone = float((one_by_one(trained, x_test).argmax(-1) == y_test).mean())
with_statistics = float((logits.argmax(-1) == y_test).mean())
print(f"running statistics:  {with_statistics:.1%}")
print(f"each digit's own:    {alone:.1%}")
assert alone < with_statistics

# %% [markdown]
# **The first layer's filters**, before training and after, as they are used: as correlations. A red
# weight asks for ink at its place, a blue one for none. Each filter is drawn relative to its
# largest weight.
#
# Training has turned them only a little: the cosine between a filter before and after is near 1.

# %%
fig = plt.figure(figsize=(12, 5))
upper, lower = fig.subfigures(2, 1, height_ratios=(1, 1.35))
for part, name, columns in ((upper, "ResNet", 16), (lower, "LeNet", 6)):
    for place, (when, (first, *_)) in enumerate(
        zip(("before", "trained"), runs[name][:2], strict=True)
    ):
        for column, weights in enumerate(jnp.moveaxis(first.W[:, :, 0], -1, 0)):
            axis = part.add_subplot(2, columns, 1 + column + columns * place)
            bound = float(jnp.abs(weights).max())
            axis.imshow(weights, cmap="RdBu_r", vmin=-bound, vmax=bound)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if column == 0:
                axis.set_ylabel(f"{name}\n{when}", rotation=0, ha="right", va="center")
    W, V = (np.asarray(params[0].W).reshape(-1, columns) for params in runs[name][:2])
    cosines = (W * V).sum(0) / np.sqrt((W**2).sum(0) * (V**2).sum(0))
    print(f"{name}: cosines between {cosines.min():.2f} and {cosines.max():.2f}")
    assert cosines.min() > 0.7
fig.suptitle("Filters of the first convolution: 3×3 of ResNet, 5×5 of LeNet")
plt.show()

# %% [markdown]
# ## 6. Saliency is $dx$
#
# A backward pass does not end at the first layer's weights; it ends at $dx$. Start it with a
# one-hot error at the logit of class $c$ and $dx$ is $\partial\, \text{logit}_c / \partial x$: how
# much the logit would change with each pixel (Simonyan et al., 2014). Training throws this array
# away; here it is the result. The network is `resnet.inference()`, so no other image has a part in
# it. Autodiff must agree, by the judge of error bounds.


# %%
@partial(jax.jit, static_argnums=0)
def saliency(network, params, images, dout, **taken):
    """The gradient of sum(dout * logits) with respect to the pixels."""
    _, residuals = network.forward(params, images, **taken)
    return network.backward(params, residuals, dout)[1]


def of_resnet(params, running, images, dout):
    """Saliency of the ResNet when it isn't trained."""
    return saliency(resnet.inference(), params, images, dout, statistics=running)


def of_resnet_by_autodiff(params, running, images, dout):
    """The same by jax.vjp of the forward pass."""

    def forward(images):
        return resnet.inference().forward(params, images, statistics=running)[0]

    return jax.vjp(forward, images)[1](dout)[0]


one_digit = (trained, running, x_test[:1], jax.nn.one_hot(y_test[:1], 10))
verdict = judges.same(of_resnet, of_resnet_by_autodiff, *one_digit)
judged("saliency of one digit: library, autodiff", verdict)

# %% [markdown]
# Of each digit three things: the image, $dx$ of the logit of its true class, and $dx$ of a
# difference of logits, since classes are decided by differences. The difference is that of the
# strongest other class and the true one. Where it is red, more ink speaks for the other class.

# %%
truth = np.asarray(y_test)


def read(logits):
    """The class that each digit is read as, and its strongest class but the true one."""
    others = jnp.where(jax.nn.one_hot(y_test, 10) > 0, -jnp.inf, logits)
    return np.asarray(logits.argmax(-1)), np.asarray(others.argmax(-1))


predicted, rivals = read(logits)
wrong = np.flatnonzero(predicted != truth)
correct = np.array([np.flatnonzero((truth == c) & (predicted == c))[0] for c in (0, 3, 4, 5, 7, 9)])
shown = np.concatenate([correct[: 9 - len(wrong[:4])], wrong[:4]])
of_truth = jax.nn.one_hot(truth[shown], 10)
of_difference = jax.nn.one_hot(rivals[shown], 10) - of_truth
rows = [
    of_resnet(trained, running, x_test[shown], dout)[..., 0] for dout in (of_truth, of_difference)
]

fig, axes = plt.subplots(3, len(shown), figsize=(13, 5.2))
bound = 4.0
for column, index in enumerate(shown):
    axes[0, column].imshow(x_test[index, ..., 0], cmap="gray_r", vmin=0, vmax=1)
    right = predicted[index] == truth[index]
    text = f"{truth[index]}" if right else f"{truth[index]}, read as {predicted[index]}"
    axes[0, column].set_title(text, color="black" if right else RED)
    for axis, row in zip(axes[1:, column], rows, strict=True):
        drawn = axis.imshow(row[column], cmap="RdBu_r", vmin=-bound, vmax=bound)
    axes[2, column].set_title(f"{rivals[index]} − {truth[index]}")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
names = ("image", "logit of\nthe true class", "other class\n− true class")
for axis, name in zip(axes[:, 0], names, strict=True):
    axis.set_ylabel(name, rotation=0, ha="right", va="center")
unit = "logit per unit of a pixel\n(white 0, black 1)"
fig.colorbar(drawn, ax=axes[1:], label=unit, pad=0.01, extend="both")
fig.suptitle(f"Saliency of digits; {len(wrong)} of {len(truth)} test digits are misread")
plt.show()

# %% [markdown]
# All maps share one scale, and in the last row those of misread digits are among the strongest.
# LeNet misreads enough digits to see whether this is more than chance: over the whole test set,
# misread digits tend to lie where the logits change fast.

# %%
lenet_trained = runs["LeNet"][1]
lenet_predicted, lenet_rivals = read(mbp.predict(lenet_trained, x_test, network=lenet))
differences = jax.nn.one_hot(lenet_rivals, 10) - jax.nn.one_hot(y_test, 10)
lenet_dx = saliency(lenet, lenet_trained, x_test, differences)
lengths = np.sqrt(np.sum(np.asarray(lenet_dx) ** 2, axis=(1, 2, 3)))
misread = lenet_predicted != truth
for name, those in (("read right", ~misread), ("misread", misread)):
    quartiles = ", ".join(f"{each:.1f}" for each in np.quantile(lengths[those], (0.25, 0.5, 0.75)))
    print(f"{name:<11} {those.sum():>3} digits, quartiles of the norm of dx: {quartiles}")

# %% [markdown]
# **What a saliency map does not say.** It is a derivative, so it speaks of small changes. Let
# $d = \text{logit}_{\text{true}} - \text{logit}_{\text{other}}$ and $dx$ its gradient. To first
# order $d$ falls fastest along $-dx$, and is 0 at the distance $d / \|dx\|$. Here is how far one
# really has to go in that direction.

# %%
right_ones = shown[predicted[shown] == truth[shown]]


@jax.jit
def differences_along(index, distances):
    """d at these distances from an image, where it falls fastest at first; and |dx|."""
    pair = jax.nn.one_hot(y_test[index], 10) - jax.nn.one_hot(jnp.array(rivals)[index], 10)
    dx = of_resnet(trained, running, x_test[index][None], pair[None])
    length = jnp.sqrt((dx**2).sum())
    images = x_test[index] - distances[:, None, None, None] * dx / length
    moved_logits, _ = resnet.inference().forward(trained, images, statistics=running)
    return moved_logits @ pair, length


distances = jnp.linspace(0, 4, 161)
fig, axis = plt.subplots(figsize=(8, 4.4))
for index, colour in zip(right_ones, (BLUE, ORANGE, GREEN, RED, PURPLE, GREY), strict=False):
    along, length = differences_along(index, distances)
    axis.plot(distances, along, color=colour, label=f"{truth[index]} against {rivals[index]}")
    axis.plot(distances, along[0] - length * distances, ":", color=colour, linewidth=1.4)
    below = np.flatnonzero(np.asarray(along) <= 0)
    really = f"{distances[below[0]]:.2f}" if below.size else "more than 4"
    print(
        f"{truth[index]} against {rivals[index]}: d = {along[0]:5.2f}, "
        f"to first order {along[0] / length:.2f} away, really {really}"
    )
axis.axhline(0, color="black", linewidth=0.8)
axis.plot([], [], ":", color="black", label="tangent: $d - \\|dx\\|\\, t$")
axis.set(
    xlabel="distance $t$ from the image (norm over the 64 pixels, 1 = white to black)",
    ylabel="$d$: true − other logit",
    xlim=(0, 4),
)
axis.set_ylim(bottom=-12)
axis.legend(fontsize=9.5, ncols=2)
fig.suptitle("A saliency map is a tangent")
plt.show()

# %% [markdown]
# The tangents touch at $t = 0$. Where the class changes they are off, some one way, some the other,
# and farther on they say nothing: a saliency map tells what would matter *next*, not why the
# network decided as it did.
#
# ## 7. Exercises
#
# Fill in what is `None` and run the cell. As committed, nothing is filled in. All arguments are
# small integers, and all quotients by powers of 2, so that right answers are exact: the checker,
# `checker.py` beside this notebook, asks for equality. Solutions follow at the end.

# %% [markdown]
# **Exercise 1.** The backward pass of a convolution along one axis, with stride 2 and one zero at
# the low end: $\text{out}[i, o] = \sum_p \sum_c x[2i + p - 1, c]\, W[p, c, o]$. `x` is $(n, C)$,
# `W` is $(3, C, O)$, `dout` $(n', O)$; there is one example. Loops are welcome.


# %%
def my_conv_backward(W, x, dout):
    """dW and dx, of the shapes of W and x."""
    dW = None
    dx = None
    return {"dW": dW, "dx": dx}


W_1, x_1 = integers(rng, 3, 2, 4), integers(rng, 8, 2)
PADDING_1 = ((1, 0),)
dout_1 = integers(rng, 4, 4)


def conv_1(W, x):
    """The judge's own, by jax.lax."""
    axes = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x[None], W, (2,), PADDING_1, dimension_numbers=axes)[0]


dW_1, dx_1 = jax.vjp(conv_1, W_1, x_1)[1](dout_1)
exercise_1 = ((W_1, x_1, dout_1), {"dW": dW_1, "dx": dx_1})
solved_1 = check_answer(my_conv_backward, *exercise_1)


# %% [markdown]
# This is what the checker says when $dW$ is back to front:


# %%
def with_mistake(W, x, dout):
    """dW back to front."""
    return {"dW": dW_1[::-1], "dx": dx_1}


assert not check_answer(with_mistake, *exercise_1)

# %% [markdown]
# **Exercise 2.** Batch norm that only subtracts the mean: $\text{out} = \gamma\,(x - \mu)$, with
# $\gamma$ and $\mu = \langle x \rangle$ for each channel. `x` is $(8, C)$. Which of the two terms
# of section 3 is left?


# %%
def my_mean_norm_backward(gamma, x, dout):
    """dgamma, (C,), and dx, (8, C)."""
    dgamma = None
    dx = None
    return {"dgamma": dgamma, "dx": dx}


gamma_2, x_2, dout_2 = integers(rng, 3), integers(rng, 8, 3), integers(rng, 8, 3)
dgamma_2, dx_2 = jax.vjp(lambda g, x: g * (x - x.mean(0)), gamma_2, x_2)[1](dout_2)
exercise_2 = ((gamma_2, x_2, dout_2), {"dgamma": dgamma_2, "dx": dx_2})
solved_2 = check_answer(my_mean_norm_backward, *exercise_2)


# %% [markdown]
# **Exercise 3.** Maximum pooling of $2 \times 2$ windows in which *all* of the largest share the
# error equally, as the gradient of `jnp.max` has it. `x` is $(h, w)$ with even sides.


# %%
def my_max_pool_backward(x, dout):
    """dx, (h, w), from dout, (h/2, w/2)."""
    dx = None
    return {"dx": dx}


x_3, dout_3 = x_small, 3 * small_dout  # three windows with ties: of two, two and four
x_3 = x_3.at[0, 1].set(2).at[0, 2].set(1)


def pool_3(x):
    """The judge's own: jnp.max over the two axes of each window."""
    return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).max((1, 3))


exercise_3 = ((x_3, dout_3), {"dx": jax.vjp(pool_3, x_3)[1](dout_3)[0]})
solved_3 = check_answer(my_max_pool_backward, *exercise_3)

# %% [markdown]
# **Exercise 4** (on paper).
#
# a. A convolution with a bias stands before a batch norm. What is $db$?
#
# b. What happens to the output of the batch norm, and to $dW$, when that convolution's $W$ is
# multiplied by 2? (Take $\epsilon = 0$.)
#
# c. What share of the pixels gets no error at all through a $1 \times 1$ convolution of stride 2?
#
# d. The error at one pixel of the last of ten $3 \times 3$ convolutions (stride 1, no borders):
# how many input pixels can it reach?
#
# <details>
# <summary>Answers</summary>
#
# a. Zero. The norm takes any constant away, so nothing depends on $b$: $\sum_i dx_i = 0$ in section
# 3. Hence `mbp.resnet` has `Conv(..., bias=False)` there.
#
# b. The output stays. $dW$ is halved: $r$ is, and $dx$ with it.
#
# c. Three quarters: the outputs see pixels with even row and column alone. ResNet's shortcuts have
# such convolutions; the error of the other pixels comes through the body.
#
# d. $21 \times 21 = 441$: each convolution adds one on each side.
#
# </details>
#
# The same answers, computed: a in exact fractions, b in growing precision, c and d counted.


# %%
def sum_of_dx(gamma, x, r, dout):
    """What arrives at the bias of a convolution in front of a batch norm."""
    return closed_form(gamma, x, r, dout).sum(OVER)


args = (gamma, x, r, dout_of_x := rng.normal(size=x.shape))
verdict = judges.same(sum_of_dx, lambda g, x, r, d: jnp.zeros_like(g), *args, judge=judges.rational)
judged("a. db is 0", verdict)


def through_norm(W, x, dout):
    """The output of a batch norm with eps = 0 after a 1×1 convolution W, and dW."""

    def forward(W):
        z = jnp.einsum("mijc,co->mijo", x, W)
        return (z - z.mean(OVER)) / jnp.sqrt(z.var(OVER))

    out, pull = jax.vjp(forward, W)
    return out, pull(dout)[0]


def through_norm_doubled(W, x, dout):
    """The same of 2 W, its dW doubled."""
    out, dW = through_norm(2 * W, x, dout)
    return out, 2 * dW


args = (rng.normal(size=(2, 2)), x, dout_of_x)
judged(
    "b. out stays, dW is halved",
    judges.same(through_norm_doubled, through_norm, *args, judge=judges.digits),
)

layer = mbp.Conv(1, (1, 1), stride=2, bias=False)
ones = jnp.ones((1, 8, 8, 1))
_, residuals = layer.forward(ConvParams(ones[:, :1, :1], ()), ones)
_, reached = layer.backward(ConvParams(ones[:, :1, :1], ()), residuals, jnp.ones((1, 4, 4, 1)))
print(f"c. {float((reached == 0).mean()):.0%} of the pixels get no error")
assert (reached == 0).mean() == 0.75

layer = mbp.Conv(1, (3, 3), bias=False)
error = jnp.zeros((1, 31, 31, 1)).at[0, 15, 15, 0].set(1)
for _ in range(10):
    params = ConvParams(jnp.ones((3, 3, 1, 1)), ())
    _, error = layer.backward(params, layer.forward(params, error)[1], error)
print(f"d. {int((error > 0).sum())} pixels are reached")
assert (error > 0).sum() == 441

# %% [markdown]
# ### Solutions
#
# They run through the same checker.


# %%
def conv_backward_solution(W, x, dout):
    """Exercise 1: every product of the forward pass, once for each of its two factors."""
    dW, dx = np.zeros(W.shape), np.zeros(x.shape)
    for i, p in np.ndindex(len(dout), len(W)):
        j = 2 * i + p - 1
        if 0 <= j < len(x):
            dW[p] += np.outer(x[j], dout[i])
            dx[j] += W[p] @ dout[i]
    return {"dW": dW, "dx": dx}


def mean_norm_backward_solution(gamma, x, dout):
    """Exercise 2: the term through the mean; none through a deviation."""
    dgamma = (dout * (x - x.mean(0))).sum(0)
    return {"dgamma": dgamma, "dx": gamma * (dout - dout.mean(0))}


def max_pool_backward_solution(x, dout):
    """Exercise 3: the error of a window over the number of its largest, at each of them."""
    windows = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2)
    largest = windows == windows.max((1, 3), keepdims=True)
    shares = dout[:, None, :, None] * largest / largest.sum((1, 3), keepdims=True)
    return {"dx": shares.reshape(x.shape)}


assert check_answer(conv_backward_solution, *exercise_1)
assert check_answer(mean_norm_backward_solution, *exercise_2)
assert check_answer(max_pool_backward_solution, *exercise_3)

# %% [markdown]
# ## Sources
#
# - Y. LeCun, B. Boser, J. S. Denker et al., *Backpropagation applied to handwritten zip code
#   recognition*, Neural Computation 1 (1989): convolutions trained by backpropagation.
# - Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, *Gradient-based learning applied to document
#   recognition*, Proceedings of the IEEE 86 (1998): LeNet.
# - V. Dumoulin, F. Visin, *A guide to convolution arithmetic for deep learning* (2016),
#   arXiv:1603.07285: padding, strides, and the zeros between.
# - A. Odena, V. Dumoulin, C. Olah, *Deconvolution and checkerboard artifacts*, Distill (2016).
# - M. Ranzato, F. J. Huang, Y.-L. Boureau, Y. LeCun, *Unsupervised learning of invariant feature
#   hierarchies with applications to object recognition* (2007): maximum pooling.
# - S. Ioffe, C. Szegedy, *Batch normalization* (2015), arXiv:1502.03167.
# - K. He, X. Zhang, S. Ren, J. Sun, *Delving deep into rectifiers* (2015), arXiv:1502.01852: the
#   initialisation; *Deep residual learning for image recognition* (2016), arXiv:1512.03385, and
#   *Identity mappings in deep residual networks* (2016), arXiv:1603.05027: skip paths.
# - G. Yang, J. Pennington, V. Rao, J. Sohl-Dickstein, S. S. Schoenholz, *A mean field theory of
#   batch normalization* (2019), arXiv:1902.08129: why plain stacks with batch norm explode.
# - S. De, S. L. Smith, *Batch normalization biases residual blocks towards the identity function in
#   deep networks* (2020), arXiv:2002.10444: skip and norm together.
# - K. Simonyan, A. Vedaldi, A. Zisserman, *Deep inside convolutional networks: visualising image
#   classification models and saliency maps* (2014), arXiv:1312.6034.
# - E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, UCI Machine Learning
#   Repository (1998): the digits.
