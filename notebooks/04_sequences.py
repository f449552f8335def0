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
# # Sequences: recurrence, attention, and a GPT on one page
#
# A network for sequences uses the same weights at every step, and lets one step speak to another:
# through a state that is handed on, or through attention. Both make the backward pass a question of
# *who heard whom*. This notebook derives each part, runs every formula in a line or two of `jnp`,
# and compares it with the layer of `manual_bp` and with autodiff. Nothing is compared with a
# tolerance: the judges of `verify` compute in exact fractions, in growing precision, or in doubles
# with a bound on their rounding (notebook 2 is about these). All outputs are kept, so the notebook
# can be read without running anything.
#
# 1. Backpropagation through time, and where errors vanish
# 2. Attention, term by term
# 3. From T × T to blocks
# 4. A GPT's backward pass on one page
# 5. Every intermediate of a two-layer GPT
# 6. Trained on English
# 7. What to take home; exercises, with a checker; solutions

# %%
import inspect
import json
import textwrap
from functools import partial
from pathlib import Path
from time import perf_counter

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import manual_bp as mbp
from manual_bp.layers.lstm import Params as LSTMParams
from manual_bp.layers.lstm import State
from manual_bp.layers.multi_head_attention import Params as AttentionParams
from manual_bp.layers.rnn import Params as RNNParams
from verify import engine, judges, rules
from verify.arithmetic.multiprecision import Multiprecision
from verify.arithmetic.numpy import Float64
from verify.curves import LIMIT
from verify.interpreter import trace
from verify.networks import Case
from verify.text import plain
from verify.text.corpus import corpus

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


def judged(name, verdict, right=True):
    """Print a judge's verdict, and fail unless it is the expected one."""
    said = "the same" if verdict.ok else f"not the same: {verdict.first_wrong}"
    print(f"{name:<58} {said}")
    assert verdict.ok == right, name


def numbered(axis, values, size=9, colours="RdBu_r", bound=None, hidden=None, form=".2f"):
    """An image with its numbers written into it; hidden entries are hatched."""
    values = np.asarray(values)
    hidden = np.zeros(values.shape, bool) if hidden is None else hidden
    bound = bound or np.abs(values[~hidden]).max()
    shown = np.ma.array(values, mask=hidden)
    axis.imshow(shown, cmap=colours, vmin=-bound, vmax=bound)
    for (row, column), value in np.ndenumerate(values):
        if hidden[row, column]:
            place = (column - 0.5, row - 0.5)
            grey = {"facecolor": "#F2F2F2", "edgecolor": "#CFCFCF", "hatch": "///", "lw": 0}
            axis.add_patch(Rectangle(place, 1, 1, **grey))
            continue
        ink = "white" if abs(value) > 0.6 * bound else "black"
        text = f"{value:{form}}".replace("-0.00", "0.00").replace("-", "−")
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=size)
    axis.set_xticks(range(values.shape[1]))
    axis.set_yticks(range(values.shape[0]))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


# %% [markdown]
# ## 1. Backpropagation through time, and where errors vanish
#
# A recurrent network reads $x_1, \dots, x_T$ and hands its state on, from $h_0$ to $h_T$:
#
# $$z_t = W x_t + U h_{t-1} + b, \qquad h_t = g(z_t), \qquad \text{out}_t = h_t.$$
#
# **The question** is the same as always: who heard $h_t$? Two did. Its own output, with the error
# $\text{dout}_t$, and $z_{t+1}$, through $U$. Errors of a number that is used twice add:
#
# $$\boxed{\;dh_t = \text{dout}_t + U^{\mathsf T} dz_{t+1}, \qquad
# dz_t = dh_t \odot g'(z_t)\;} \qquad t = T, \dots, 1, \quad dz_{T+1} = 0.$$
#
# $W$, $U$ and $b$ are used $T$ times, so each has a sum of $T$ terms, those of a dense layer whose
# inputs are $x_t$ and $h_{t-1}$:
#
# $$dW = \sum_t dz_t x_t^{\mathsf T}, \quad dU = \sum_t dz_t h_{t-1}^{\mathsf T}, \quad
# db = \sum_t dz_t, \qquad dx_t = W^{\mathsf T} dz_t, \quad dh_0 = U^{\mathsf T} dz_1.$$
#
# That is the whole of it: a chain of $T$ dense layers that share their weights. In the code the
# examples are rows, so that $U^{\mathsf T} dz$ is `dz @ U`.


# %%
def rnn_by_hand(params, x, dout, g, slope):
    """(dparams, dx, dh_0), one step after the other."""
    W, U, b = params
    m, T, _ = x.shape
    h, z = [jnp.zeros((m, len(U)), x.dtype)], []
    for t in range(T):  # h[t] is the state before step t, h[t + 1] the one after
        z.append(x[:, t] @ W.T + h[t] @ U.T + b)
        h.append(g(z[t]))

    dW, dU, db, dx = jnp.zeros_like(W), jnp.zeros_like(U), jnp.zeros_like(b), [None] * T
    from_later = jnp.zeros_like(h[0])
    for t in reversed(range(T)):
        dh = dout[:, t] + from_later
        dz = dh * slope(z[t])
        dW, dU, db = dW + dz.T @ x[:, t], dU + dz.T @ h[t], db + dz.sum(0)
        dx[t] = dz @ W
        from_later = dz @ U
    return RNNParams(dW, dU, db), jnp.stack(dx, 1), from_later


def rnn_by_library(params, x, dout, activation):
    """The same by the library's layer."""
    layer = mbp.RNN(len(params.b), activation, stateful=True)
    _, residuals = layer.forward(params, x, state=None)
    dparams, dx, dtaken = layer.backward_taken(params, residuals, dout)
    return dparams, dx, dtaken["state"]


def rnn_by_autodiff(params, x, dout, g):
    """The same by autodiff of the forward lines."""

    def forward(params, x, h):
        out = []
        for t in range(x.shape[1]):
            h = g(x[:, t] @ params.W.T + h @ params.U.T + params.b)
            out.append(h)
        return jnp.stack(out, 1)

    first = jnp.zeros((len(x), len(params.b)), x.dtype)
    return jax.vjp(forward, params, x, first)[1](dout)


rng = np.random.default_rng(0)
m, T, F, n = 3, 4, 3, 2
params = RNNParams(rng.normal(size=(n, F)), rng.normal(size=(n, n)), rng.normal(size=n))
x, dout = rng.normal(size=(m, T, F)), rng.normal(size=(m, T, n))

cases = {
    "relu": (judges.rational, lambda z: jnp.maximum(z, 0), lambda z: (z > 0) * 1.0, mbp.relu),
    "tanh": (judges.digits, jnp.tanh, lambda z: 1 - jnp.tanh(z) ** 2, mbp.tanh),
}
for name, (judge, g, slope, activation) in cases.items():
    by_hand = partial(rnn_by_hand, g=g, slope=slope)
    theirs = {
        "library": partial(rnn_by_library, activation=activation),
        "autodiff": partial(rnn_by_autodiff, g=g),
    }
    for other, function in theirs.items():
        verdict = judges.same(by_hand, function, params, x, dout, judge=judge)
        judged(f"{name}, by {judge.__name__}: by hand, {other}", verdict)

# %% [markdown]
# With relu everything is made of sums, products and comparisons, so the judge computes in
# fractions, and "the same" means equal. With tanh it computes with 20 and 40 digits, and the
# difference has to shrink with them.
#
# **Why $dW$ is one product after the loop.** Look at what the backward loop must do in order: only
# $dz_t$ needs $dz_{t+1}$. $dW$, $dU$, $db$ and $dx$ need all $dz$, but none of them is needed by
# the next step. Let $dz$ and $x$ be matrices with a row for each step and example, $mT$ in all.
# Then
#
# $$\sum_t dz_t x_t^{\mathsf T} = dz^{\mathsf T} x,$$
#
# one product of an $(n, mT)$ by an $(mT, F)$ matrix. Autodiff of a scan can't see this. It puts
# $dW \leftarrow dW + dz_t^{\mathsf T} x_t$ into its loop, which reads and writes all of $dW$ at
# every step, for a product of rank $m$.


# %%
def after_the_loop(U, slopes, x, h, dout):
    """(dW, dU), by one product each."""

    def step(from_later, at):
        dout, slope = at
        dz = (dout + from_later) * slope
        return dz @ U, dz

    _, dz = jax.lax.scan(step, jnp.zeros_like(dout[0]), (dout, slopes), reverse=True)
    return jnp.einsum("tmi,tmj->ij", dz, x), jnp.einsum("tmi,tmj->ij", dz, h)


def in_the_loop(U, slopes, x, h, dout):
    """(dW, dU), by an update at each step."""

    def step(carry, at):
        from_later, dW, dU = carry
        dout, slope, x, h = at
        dz = (dout + from_later) * slope
        return (dz @ U, dW + dz.T @ x, dU + dz.T @ h), None

    start = (jnp.zeros_like(dout[0]), jnp.zeros_like(U), jnp.zeros_like(U))
    (_, dW, dU), _ = jax.lax.scan(step, start, (dout, slopes, x, h), reverse=True)
    return dW, dU


small = [rng.normal(size=(n, n)), *(rng.normal(size=(T, m, n)) for _ in range(4))]
verdict = judges.same(after_the_loop, in_the_loop, *small, judge=judges.rational)
judged("dW, dU after the loop and in the loop, in fractions", verdict)

wide = [jnp.array(each, jnp.float32) for each in rng.normal(size=(4, 256, 16, 256)) / 16]
U_wide = jnp.array(np.linalg.qr(rng.normal(size=(256, 256)))[0], jnp.float32)
for name, function in (("in the loop", in_the_loop), ("after the loop", after_the_loop)):
    compiled = jax.jit(function).lower(U_wide, *wide).compile()
    times = []
    for _ in range(5):
        started = perf_counter()
        jax.block_until_ready(compiled(U_wide, *wide))
        times.append(perf_counter() - started)
    print(f"T = 256, batch 16, width 256, dW and dU {name:<15} {1e3 * min(times):6.1f} ms")

# %% [markdown]
# **Through $k$ steps.** Let an error arrive at the last step alone. At step $t$ it has passed $k =
# T - t$ times through $U^{\mathsf T} \operatorname{diag}(g'(z))$. If all singular values of $U$ are
# $\rho$, and $|g'| \le 1$,
#
# $$\|dh_t\| \le \rho^{\,k}\, \|dh_T\|.$$
#
# Below $\rho = 1$ it vanishes like a power. At $\rho = 1$ nothing is lost to $U$, and yet it
# vanishes, since $g' < 1$ wherever a unit is not at rest. Above 1 it may explode or not: a larger
# $U$ also drives the units into saturation, where $g'$ is small. (For an arbitrary $U$ the singular
# values bound one step; its spectral radius, the largest $|\text{eigenvalue}|$, is what many steps
# come to.)
#
# **The LSTM** hands a second state on, a sum (all products element-wise, $\sigma$ the sigmoid):
#
# $$c_t = f \odot c_{t-1} + i \odot \tilde c, \qquad h_t = o \odot \tanh(c_t), \qquad
# (i, f, \tilde c, o) = (\sigma, \sigma, \tanh, \sigma)(W x_t + U h_{t-1} + b).$$
#
# $c_t$ was heard by $h_t$ and by $c_{t+1}$, which took it times $f_{t+1}$:
#
# $$\boxed{\,dc_t = f_{t+1} \odot dc_{t+1} + dh_t \odot o_t \odot \tanh'(c_t)\,}$$
#
# and a factor's error is $dc_t$ times the other factor, times its gate's slope. From $c$ to $c$
# there is no matrix and no slope, but one number in $(0, 1)$ for each unit, which the network
# chooses at every step. Along this path the error after $k$ steps is
# $f_{t+1} \odot \dots \odot f_T \odot dc_T$.


# %%
def sigma(z):
    """1 / (1 + e⁻ᶻ)."""
    return 1 / (1 + jnp.exp(-z))


def lstm_errors(params, x, dout):
    """Every dh_t and dc_t from t = 0 on, and every forget gate, from what was heard."""
    W, U, b = params
    m, T, _ = x.shape
    h = c = jnp.zeros((m, U.shape[1]), x.dtype)
    kept = []
    for t in range(T):
        i, f, g, o = jnp.split(x[:, t] @ W.T + h @ U.T + b, 4, axis=-1)
        i, f, g, o = sigma(i), sigma(f), jnp.tanh(g), sigma(o)
        before, c = c, f * c + i * g
        h = o * jnp.tanh(c)
        kept.append((i, f, g, o, before, jnp.tanh(c)))

    from_h, from_c, dh, dc = jnp.zeros_like(h), jnp.zeros_like(c), [], []
    for t in reversed(range(T)):
        i, f, g, o, before, s = kept[t]
        dh.append(dout[:, t] + from_h)
        dc.append(from_c + dh[-1] * o * (1 - s**2))
        di, df, dg, do = dc[-1] * g, dc[-1] * before, dc[-1] * i, dh[-1] * s
        dz = [di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)]
        from_h, from_c = jnp.concatenate(dz, axis=-1) @ U, f * dc[-1]
    return (
        jnp.stack([*dh, from_h][::-1]),
        jnp.stack([*dc, from_c][::-1]),
        jnp.stack([f for _, f, *_ in kept]),
    )


def first_errors(params, x, dout):
    """dh_0 and dc_0 by the lines above."""
    dh, dc, _ = lstm_errors(params, x, dout)
    return State(dh[0], dc[0])


def first_errors_by_library(params, x, dout):
    """The same: the library's layer gives the error of the state that it was handed."""
    layer = mbp.LSTM(params.U.shape[1], stateful=True)
    _, residuals = layer.forward(params, x, state=None)
    return layer.backward_taken(params, residuals, dout)[2]["state"]


params = LSTMParams(
    rng.normal(size=(4 * n, F)), rng.normal(size=(4 * n, n)), rng.normal(size=4 * n)
)
verdict = judges.same(first_errors, first_errors_by_library, params, x, dout, judge=judges.digits)
judged("LSTM, dh_0 and dc_0: by hand, library", verdict)

# %% [markdown]
# Now both over a hundred steps: 64 units, inputs of variance 1, an error at the last step alone.
# $U$ is $\rho$ times an orthogonal matrix; the LSTM's is orthogonal for each gate.

# %%
LONG, UNITS, BATCH = 100, 64, 8
long_x = rng.normal(size=(BATCH, LONG, UNITS))
last = np.zeros((BATCH, LONG, UNITS))
last[:, -1] = rng.normal(size=(BATCH, UNITS))
W_long = rng.normal(size=(4 * UNITS, UNITS)) / np.sqrt(UNITS)
U_long = np.concatenate([np.linalg.qr(rng.normal(size=(UNITS, UNITS)))[0] for _ in range(4)])


def rnn_errors(rho, size):
    """Every dh_t of the tanh network, from t = 1 on, for inputs of this size."""
    W, U = size * W_long[:UNITS], rho * U_long[:UNITS]
    h, slopes = np.zeros((BATCH, UNITS)), []
    for t in range(LONG):
        h = np.tanh(long_x[:, t] @ W.T + h @ U.T)
        slopes.append(1 - h**2)
    dh = [last[:, -1]]
    for slope in slopes[:0:-1]:
        dh.append((dh[-1] * slope) @ U)
    return np.stack(dh[::-1])


def norms(errors):
    """The norm over units and examples at each step, relative to the last step's."""
    size = np.sqrt((np.asarray(errors) ** 2).sum((1, 2)))
    return size / size[-1]


steps = np.arange(1, LONG + 1)
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.6), sharey=True)
for rho, colour in ((0.8, RED), (1.0, BLUE), (1.3, GREEN)):
    for size, style in ((1, "-"), (0.1, "--")):
        found = norms(rnn_errors(rho, size))
        assert (found <= rho ** (LONG - steps) * (1 + 2.0**-40)).all()
        left.semilogy(steps, found, style, color=colour, linewidth=1.8)
    bound = rho ** (LONG - steps)
    left.semilogy(steps, np.where(bound < 1e3, bound, np.nan), ":", color=colour, linewidth=1.5)
    left.plot([], [], color=colour, label=f"ρ = {rho}")
for style, label in (("-", "inputs of size 1"), ("--", "of size 0.1"), (":", "bound $ρ^{T-t}$")):
    left.plot([], [], style, color="black", label=label)
after = {}
for b_f, colour in ((0, RED), (1, ORANGE), (3, BLUE), (6, GREEN)):
    given = (LSTMParams(W_long, U_long, np.repeat([0, b_f, 0, 0], UNITS)), long_x, last)
    dh, dc, f = lstm_errors(*jax.tree.map(np.float32, given))
    products = np.cumprod(np.append(f[1:], f[:1] ** 0, axis=0)[::-1], axis=0)[::-1]
    middle.semilogy(steps, norms(dh[1:]), color=colour, linewidth=1.8, label=f"$b_f = {b_f}$")
    right.semilogy(steps, norms(dc[1:]), color=colour, linewidth=1.8)
    right.semilogy(steps, norms(products * dc[-1]), ":", color=colour, linewidth=1.8)
    after[b_f] = norms(dc[1:])[0]
    print(f"b_f = {b_f}: mean forget gate {f.mean():.3f}, |dc_1| / |dc_T| = {after[b_f]:.1e}")
right.plot([], [], color="black", label="$dc_t$")
right.plot([], [], ":", color="black", label=r"$f_{t+1} \odot \cdots \odot f_T \odot dc_T$")
for axis in (left, middle, right):
    axis.set(xlabel="step $t$ (the error travels from right to left)", xlim=(1, LONG))
    axis.set_ylim(1e-16, 1e8)
left.set(title="RNN: $dh_t$", ylabel="norm, relative to that of the last step")
middle.set(title="LSTM: $dh_t$")
right.set(title="LSTM: $dc_t$, and the product of forget gates")
left.legend(fontsize=9, ncols=2, loc="upper left")
middle.legend(fontsize=9, ncols=2, loc="upper left")
right.legend(fontsize=9, loc="upper left")
fig.suptitle("An error at the last step, on its way back")
plt.show()
assert after[0] < after[1] < after[3] < after[6]

# %% [markdown]
# Read the left panel by colour. With inputs of size 0.1 (dashed) and $\rho \le 1$ units stay near
# rest, and the error follows $\rho^k$ from not far below. With inputs of size 1 it vanishes for all
# three: at $\rho = 1$ what is lost is lost to $g'$, and $\rho = 1.3$ saturates the units, so that
# the same $U$ whose error grows for small inputs lets it vanish for large ones. No choice of $\rho$
# is right for all.
#
# The LSTM has a choice that is. With $b_f = 1$, where training begins, a forget gate is 0.73 at $z
# = 0$: the error still vanishes, but less than half as fast (in decades) as in the RNN with $\rho =
# 1$. With gates at 0.93 it lasts: after the first steps $dh_t$ keeps its size for a hundred more.
# The dotted product of gates is one way back of many. The others lead from $c$ through $h$ and $U$
# into the next gates and add to it, so that $dc_t$ lies above it; with gates near 1 it even grows.
#
# ## 2. Attention, term by term
#
# Every position $t$ has a query, and reads from all positions $s$ as much as its query fits their
# keys. For one head, with queries, keys and values as rows:
#
# $$S = \tfrac{1}{\sqrt d}\, Q K^{\mathsf T}, \qquad
# P_{ts} = \frac{e^{S_{ts}}}{\sum_{s'} e^{S_{ts'}}}, \qquad O = P V,$$
#
# where with a *causal* mask only $s \le t$ may be read: the sum has no other terms, and $P = 0$
# above the diagonal.
#
# Each formula below is a function whose name is the quantity and whose arguments are what it needs.
# `formula` puts it to those before it and has the quantity judged in growing precision. The judge's
# own is autodiff of `jax.nn.softmax`, with zeros added at $S$, $P$ and $O$: the gradient with
# respect to these zeros is $dS$, $dP$, $dO$.

# %%
T, d = 6, 4
given = {name: rng.normal(size=(T, d)) for name in ("Q", "K", "V", "dO")}
causal = np.tril(np.ones((T, T), bool))
FORMULAS = {}


def value(name, known):
    """A quantity by its formula, from those that are given and those that have a formula."""
    if name in known:
        return known[name]
    formula = FORMULAS[name]
    return formula(*(value(each, known) for each in inspect.signature(formula).parameters))


def by_autodiff(known):
    """Every quantity by autodiff, from Q, K, V and dO."""

    def forward(Q, K, V, at_S, at_P):
        S = Q @ K.T / np.sqrt(d) + at_S
        P = jax.nn.softmax(jnp.where(causal, S, -1e9)) + at_P  # e to the power of it is 0
        return P @ V, (S, P)

    zeros = jnp.zeros((T, T))
    Q, K, V, dO = (known[name] for name in ("Q", "K", "V", "dO"))
    O, pull, (S, P) = jax.vjp(forward, Q, K, V, zeros, zeros, has_aux=True)
    dQ, dK, dV, dS, dP = pull(dO)
    return {"S": S, "P": P, "O": O, "dQ": dQ, "dK": dK, "dV": dV, "dS": dS, "dP": dP}


def formula(function):
    """Take a formula, and have it judged."""
    name = function.__name__
    FORMULAS[name] = function
    ours, theirs = (lambda known: value(name, known)), (lambda known: by_autodiff(known)[name])
    judged(f"{name}: by hand, autodiff", judges.same(ours, theirs, given, judge=judges.digits))
    return function


@formula
def S(Q, K):
    return Q @ K.T / np.sqrt(d)


@formula
def P(S):
    exponentials = jnp.where(causal, jnp.exp(S), 0)
    return exponentials / exponentials.sum(-1, keepdims=True)


@formula
def O(P, V):  # noqa: E743 (the letter of the papers)
    return P @ V


# %% [markdown]
# **Values and weights.** $O_{tj} = \sum_s P_{ts} V_{sj}$ is a matrix product, with errors as in a
# dense layer. $V_s$ was read by every $t$ with the weight $P_{ts}$; $P_{ts}$ weighted all of $V_s$:
#
# $$\boxed{\,dV = P^{\mathsf T} dO, \qquad dP = dO\, V^{\mathsf T}\,}$$


# %%
@formula
def dV(P, dO):
    return P.T @ dO


@formula
def dP(dO, V):
    return dO @ V.T


# %% [markdown]
# **Scores: softmax's Jacobian is dense.** Row $t$ of $P$ is the softmax $p$ of row $t$ of $S$.
# Raising one score raises its own weight and lowers all others, for they share one sum:
#
# $$\frac{\partial p_s}{\partial S_r} = p_s (\delta_{sr} - p_r), \qquad
# J = \operatorname{diag}(p) - p\, p^{\mathsf T}.$$
#
# $J$ is symmetric. Applied to the error of $p$ it needs no matrix:
#
# $$dS_r = \sum_s dP_s\, p_s (\delta_{sr} - p_r) = p_r \Big(dP_r - \sum_s dP_s\, p_s\Big)
# \qquad\Longrightarrow\qquad
# \boxed{\,dS = P \odot (dP - D), \quad D_t = \sum_s dP_{ts} P_{ts}\,}$$
#
# $D_t$ is the *mean* of row $t$ of $dP$, weighted by $P$. What counts is whether a position was
# better than the average of what was read. The mask needs no line of its own: where $P = 0$,
# $dS = 0$.


# %%
def D(dP, P):
    return (dP * P).sum(-1, keepdims=True)


FORMULAS["D"] = D  # judged as a part of dS


@formula
def dS(P, dP, D):
    return P * (dP - D)


# %% [markdown]
# **Queries and keys.** The scores are a matrix product again, times a constant:
#
# $$\boxed{\,dQ = \tfrac{1}{\sqrt d}\, dS\, K, \qquad
# dK = \tfrac{1}{\sqrt d}\, dS^{\mathsf T} Q\,}$$


# %%
@formula
def dQ(dS, K):
    return dS @ K / np.sqrt(d)


@formula
def dK(dS, Q):
    return dS.T @ Q / np.sqrt(d)


# %% [markdown]
# The last six lines are the backward pass of attention. The library's layer has four dense layers
# around them: queries, keys and values come from $x$, which gets three errors, added. Here it is by
# the formulas, head by head, against the layer.


# %%
def heads_by_hand(params, x, dout, heads):
    """(out, dparams, dx) of causal self-attention of one example, head by head."""
    Wq, Wk, Wv, Wo, bq, bk, bv, bo = params
    Q, K, V = x @ Wq.T + bq, x @ Wk.T + bk, x @ Wv.T + bv
    dO = dout @ Wo
    found = []
    for part in jnp.split(np.arange(Q.shape[-1]), heads):
        of_head = {"Q": Q[:, part], "K": K[:, part], "V": V[:, part], "dO": dO[:, part]}
        found.append([value(name, of_head) for name in ("O", "dQ", "dK", "dV")])
    O, dQ, dK, dV = (jnp.concatenate(each, axis=-1) for each in zip(*found, strict=True))
    matrices = (dQ.T @ x, dK.T @ x, dV.T @ x, dout.T @ O)
    biases = (each.sum(0) for each in (dQ, dK, dV, dout))
    return O @ Wo.T + bo, AttentionParams(*matrices, *biases), dQ @ Wq + dK @ Wk + dV @ Wv


def heads_by_library(params, x, dout, heads):
    """The same by the library's layer."""
    layer = mbp.MultiHeadAttention(heads, causal=True)
    out, residuals = layer.forward(params, x[None])
    dparams, dx = layer.backward(params, residuals, dout[None])
    return out[0], dparams, dx[0]


heads, width = 2, 2 * d
matrices = [rng.normal(size=(width, width)) / np.sqrt(width) for _ in range(4)]
attention = AttentionParams(*matrices, *rng.normal(size=(4, width)))
x, dout = rng.normal(size=(2, T, width))
ways = (partial(heads_by_hand, heads=heads), partial(heads_by_library, heads=heads))
judged("two heads between dense layers: by hand, library", judges.same(*ways, attention, x, dout))

# %% [markdown]
# **The Jacobian at work**, for query 3, which may read four keys. The columns of $J$ sum to zero,
# since weights keep the sum 1. So does $dS = J\, dP$. Without the mean, key 2 has the wrong sign:
# its error is positive, but below the average of what this query reads.

# %%
at_point = {name: np.asarray(value(name, given)) for name in ("S", "P", "dP", "D", "dS")}
p, dp = at_point["P"][3, :4], at_point["dP"][3, :4]
J = np.diag(p) - np.outer(p, p)
columns = {
    "$p$": p,
    "$dP$": dp,
    "$dS = J\\, dP$": J @ dp,
    "$p \\odot dP$:\nmean dropped": p * dp,
}
fig, axes = plt.subplots(1, 5, figsize=(11, 3.9), width_ratios=(1.5, 4, 1.5, 1.5, 1.5))
numbered(axes[1], J, bound=0.25)
axes[1].set(title="$J = \\mathrm{diag}(p) - p\\, p^{\\mathsf{T}}$", xlabel="score $r$")
for axis, (name, column) in zip(axes[[0, 2, 3, 4]], columns.items(), strict=True):
    numbered(axis, column[:, None], bound=3 if "d" in name else 0.6)
    axis.set(title=name, xticks=[], xlabel=f"sum {column.sum():.2f}".replace("-0.00", "0.00"))
axes[0].set(ylabel="key")
axes[2].set(xlabel="")
fig.suptitle("One row of attention: each score touches every weight")
plt.show()

# %% [markdown]
# **All rows.** Hatched is what the causal mask forbids. $dP$ has numbers there (the formula
# $dO\, V^{\mathsf T}$ knows no mask), and $P = 0$ removes them. The first query can read only
# itself: $P = 1$ whatever its score, so $dS = 0$.

# %%
panels = {
    "scores $S$": at_point["S"],
    "weights $P$": at_point["P"],
    "$dP$": at_point["dP"],
    "$P \\odot dP$: mean dropped": at_point["P"] * at_point["dP"],
    "$dS = P \\odot (dP - D)$": at_point["dS"],
}
fig, axes = plt.subplots(2, 3, figsize=(12.5, 8.2))
bounds = (3.5, 1, 6, 2.5, 2.5)
for axis, (name, values), bound in zip(axes.flat, panels.items(), bounds, strict=False):
    numbered(axis, values, bound=bound, hidden=None if name == "$dP$" else ~causal)
    axis.set(title=name)
    axis.set(xlabel="key $s$", ylabel="query $t$")
of_rows = {"mean dropped": panels["$P \\odot dP$: mean dropped"], "$dS$: all 0": at_point["dS"]}
for (name, values), colour, shift in zip(of_rows.items(), (RED, BLUE), (-0.2, 0.2), strict=True):
    axes[1, 2].barh(np.arange(T) + shift, values.sum(-1), height=0.38, color=colour, label=name)
axes[1, 2].set(title="sum of each row", ylabel="query $t$", xlabel="sum over keys")
axes[1, 2].invert_yaxis()
axes[1, 2].axvline(0, color="black", linewidth=0.8)
axes[1, 2].legend(fontsize=9.5, loc="lower left")
fig.suptitle("Attention weights and their errors, causal")
plt.show()

# %% [markdown]
# **What goes wrong when the mean is dropped.** Adding a number to all scores of a query changes no
# weight, so the error of that direction must be 0: the rows of $dS$ sum to zero. Without $D$ they
# don't, and descent walks along a direction in which nothing happens. Below, $S$ itself is
# descended so that $O$ comes near a random target, $\tfrac12 \|O - O^*\|^2$, with the right and
# with the wrong formula. At the minimum $dP$ is the same for all keys that are read, but it isn't
# 0, since the target is out of reach: so the wrong formula doesn't rest there.

# %%
values = given["V"]
wished = rng.normal(size=(T, d))


def descend(mean_term, rate=0.3, steps=300):
    """Losses, and the mean score of the last query, over the steps."""
    scores, losses, means = at_point["S"].copy(), [], []
    for _ in range(steps):
        weights = np.where(causal, np.exp(scores), 0)
        weights /= weights.sum(-1, keepdims=True)
        error = weights @ values - wished
        losses.append((error**2).sum() / 2)
        means.append(scores[-1].mean())
        of_weights = error @ values.T
        mean = (of_weights * weights).sum(-1, keepdims=True)
        scores -= rate * weights * (of_weights - mean_term * mean)
    return losses, means


fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
lowest = descend(1, steps=5000)[0][-1]
ended = {}
for mean_term, colour, name in ((1, BLUE, "$dS$"), (0, RED, "mean dropped")):
    losses, means = descend(mean_term)
    ended[mean_term] = losses[-1]
    left.semilogy(np.array(losses) - lowest, color=colour, label=name)
    right.plot(means, color=colour, label=name)
    moved = means[-1] - means[0]
    print(f"{name:<13} loss {losses[0]:.3f} -> {losses[-1]:.3f}; mean score moved by {moved:+.1g}")
assert ended[1] < ended[0]
left.set(xlabel="step", ylabel="loss − minimum", title="loss $\\frac{1}{2}\\|O - O^*\\|^2$")
right.set(xlabel="step", ylabel="mean over keys", title="scores of the last query")
left.legend()
fig.suptitle("A wrong gradient that descends, and then stays above the minimum")
plt.show()
wrong = judges.same(
    lambda known: value("P", known) * value("dP", known),
    lambda known: by_autodiff(known)["dS"],
    given,
    judge=judges.digits,
)
judged("dS with the mean dropped: by hand, autodiff", wrong, right=False)

# %% [markdown]
# ## 3. From T × T to blocks
#
# $S$, $P$, $dP$ and $dS$ have $T^2$ numbers each, where $Q$, $K$, $V$ and $O$ have $Td$. They need
# not exist. Let queries and keys come in blocks, and let one block of scores be there at a time.
#
# **Forward: the online softmax.** Before the last key the sum is not known. But numerator and
# denominator of
#
# $$O_t = \frac{\sum_s e^{S_{ts} - \mu}\, V_s}{\sum_s e^{S_{ts} - \mu}}$$
#
# hold for *every* $\mu$. So take the largest score so far, and where a block raises it from $\mu$
# to $\mu'$, multiply both sums by $e^{\mu - \mu'}$. No exponential exceeds 1, and at the end their
# ratio is exact. One number is kept for each query, the logarithm of the whole sum,
# $L_t = \mu + \log(\text{denominator}) = \log \sum_s e^{S_{ts}}$.

# %%
row = np.array([0.2, -0.6, 0.5, 1.4, 0.1, 0.9, 2.6, 1.1, -0.3, 0.7, 1.9, 0.4])
read = np.sin(np.arange(12) * 0.9)[:, None] + [[0.0]]
BLOCK = 3
largest, denominator, numerator, history = -np.inf, 0.0, 0.0, []
for first in range(0, len(row), BLOCK):
    scores = row[first : first + BLOCK]
    now = max(largest, scores.max())
    rescale, exponentials = np.exp(largest - now), np.exp(scores - now)
    denominator = rescale * denominator + exponentials.sum()
    numerator = rescale * numerator + exponentials @ read[first : first + BLOCK, 0]
    largest = now
    history.append((largest, rescale, denominator, numerator / denominator))

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 3.9))
shades = ("#BBD7EA", "#7FB5D8", "#3E8FC2", "#0B5C92")
ends = np.arange(BLOCK, len(row) + 1, BLOCK)
for block, (shade, (mu, *_)) in enumerate(zip(shades, history, strict=True)):
    places = np.arange(block * BLOCK, (block + 1) * BLOCK)
    left.bar(places, row[places], color=shade)
    left.plot([places[0] - 0.5, places[-1] + 0.5], [mu, mu], color=RED, linewidth=2)
    left.text(places[1], -1.15, f"block {block + 1}", ha="center", fontsize=9)
left.plot([], [], color=RED, label="largest so far, $\\mu$")
left.set(xlabel="key $s$", ylabel="score", ylim=(-1.3, 3.3), title="scores of one query")
left.axhline(0, color="black", linewidth=0.8)
left.legend(fontsize=9.5)
blocks = np.arange(1, 5)
middle.bar(blocks, [d for _, _, d, _ in history], color=shades)
for block, (_, rescale, total, _) in zip(blocks, history, strict=True):
    how = f"before × {rescale:.2f}\n+ own" if block > 1 else "own"
    middle.text(block, total + 0.05, how, ha="center", fontsize=9)
middle.set(xlabel="after block", xticks=blocks, title="denominator")
middle.set_ylim(0, 1.2 * max(total for _, _, total, _ in history))
exact = np.exp(row) @ read[:, 0] / np.exp(row).sum()
right.plot(blocks, [ratio for *_, ratio in history], "o-", color=BLUE, label="ratio so far")
right.axhline(exact, color=RED, linestyle="--", label="softmax over all keys")
right.set(xlabel="after block", xticks=blocks, title="numerator / denominator")
right.legend(fontsize=9.5)
fig.suptitle("Softmax in one pass over blocks of keys")
plt.show()

# %% [markdown]
# **Backward.** Two things reach across blocks, and both are known before the first:
#
# - *The sum in $P$.* Dividing by the sum is subtracting its logarithm,
#   $P_{ts} = e^{S_{ts}} / \sum_{s'} e^{S_{ts'}} = e^{S_{ts} - L_t}$, so a block of $P$ is computed
#   again from $Q$, $K$ and $L$. It costs one more product of $Q$ and $K$. In floating point $L$ is
#   rounded at the size of the largest score: where scores are in the millions, the logarithm in it
#   is lost. So the library keeps the largest score and the sum apart.
# - *The mean $D$.* Exchange two sums:
#
# $$D_t = \sum_s P_{ts}\, dP_{ts} = \sum_s P_{ts} \sum_j dO_{tj} V_{sj}
# = \sum_j dO_{tj} \sum_s P_{ts} V_{sj} = \sum_j dO_{tj} O_{tj}
# \qquad\Longrightarrow\qquad \boxed{\,D = \operatorname{rowsum}(dO \odot O)\,}$$
#
# The second holds for any matrix $P$, so it can be proved at a point in fractions. The first has an
# exponential in it, and goes to the judge of growing precision.

# %%
three = (rng.normal(size=(T, T)), given["V"], given["dO"])
verdict = judges.same(
    lambda P, V, dO: ((dO @ V.T) * P).sum(-1),
    lambda P, V, dO: (dO * (P @ V)).sum(-1),
    *three,
    judge=judges.rational,
)
judged("D over keys, D over features, in fractions", verdict)


def from_log_sum(S):
    """P = e^(S - L)."""
    return jnp.exp(S - jnp.log(jnp.exp(S).sum(-1, keepdims=True)))


def from_sum(S):
    """P = e^S / sum."""
    return jnp.exp(S) / jnp.exp(S).sum(-1, keepdims=True)


verdict = judges.same(from_log_sum, from_sum, at_point["S"], judge=judges.digits)
judged("P from the log-sum-exp, P from the sum", verdict)


# %% [markdown]
# All of it, in blocks of $b$ queries and $b$ keys. A causal block above the diagonal has nothing
# that may be read, and is not computed.


# %%
def needed(T, b):
    """The blocks (i, j) that a causal mask leaves, row by row."""
    return [(i, j) for i in range(T // b) for j in range(T // b) if j <= i]


def in_blocks(Q, K, V, dO, b):
    """(O, dQ, dK, dV), never more than one b × b block of scores at a time."""
    T, d = Q.shape
    may_read = np.tril(np.ones((T, T), bool))
    part = [slice(first, first + b) for first in range(0, T, b)]
    largest = {i: jnp.full((b, 1), -1e30) for i in range(len(part))}
    total, weighted = (dict.fromkeys(largest, 0.0) for _ in range(2))
    for i, j in needed(T, b):
        S = jnp.where(may_read[part[i], part[j]], Q[part[i]] @ K[part[j]].T / np.sqrt(d), -1e30)
        now = jnp.maximum(largest[i], S.max(-1, keepdims=True))
        rescale, exponentials = jnp.exp(largest[i] - now), jnp.exp(S - now)
        total[i] = rescale * total[i] + exponentials.sum(-1, keepdims=True)
        weighted[i] = rescale * weighted[i] + exponentials @ V[part[j]]
        largest[i] = now
    O = {i: weighted[i] / total[i] for i in total}
    L = {i: largest[i] + jnp.log(total[i]) for i in total}

    dQ, dK, dV = (dict.fromkeys(total, 0.0) for _ in range(3))
    D = {i: (dO[part[i]] * O[i]).sum(-1, keepdims=True) for i in total}
    for i, j in needed(T, b):
        S = Q[part[i]] @ K[part[j]].T / np.sqrt(d)
        P = jnp.where(may_read[part[i], part[j]], jnp.exp(S - L[i]), 0)
        dS = P * (dO[part[i]] @ V[part[j]].T - D[i])
        dV[j] = dV[j] + P.T @ dO[part[i]]
        dQ[i] = dQ[i] + dS @ K[part[j]] / np.sqrt(d)
        dK[j] = dK[j] + dS.T @ Q[part[i]] / np.sqrt(d)
    return tuple(jnp.concatenate(list(each.values())) for each in (O, dQ, dK, dV))


def all_at_once(Q, K, V, dO):
    """The same by the formulas of section 2."""
    known = {"Q": Q, "K": K, "V": V, "dO": dO}
    return tuple(value(name, known) for name in ("O", "dQ", "dK", "dV"))


four = [given[name] for name in ("Q", "K", "V", "dO")]
for b in (1, 2, 3):
    verdict = judges.same(partial(in_blocks, b=b), all_at_once, *four, judge=judges.digits)
    judged(f"O, dQ, dK, dV: blocks of {b}, all at once", verdict)


def layer_way(params, x, dout, block):
    """The library's layer, in blocks or not."""
    layer = mbp.MultiHeadAttention(heads, causal=True, block=block)
    out, residuals = layer.forward(params, x[None])
    return out, layer.backward(params, residuals, dout[None])


ways = (partial(layer_way, block=4), partial(layer_way, block=None))  # 4 doesn't divide 6
judged("library: block=4, all at once", judges.same(*ways, attention, x, dout))

# %% [markdown]
# Which blocks are computed, and when. The numbers are the order; hatched blocks never are. Of $n^2$
# blocks $n(n-1)/2$ are saved, nearly half.

# %%
order = needed(10, 2)
fig, axes = plt.subplots(1, 5, figsize=(14, 3.6))
for axis, done in zip(axes, (1, 4, 8, 12, 15), strict=True):
    for i, j in np.ndindex(5, 5):
        number = order.index((i, j)) + 1 if (i, j) in order else None
        look = {"facecolor": "white", "edgecolor": GREY}
        if number is None:
            look |= {"facecolor": "#F2F2F2", "hatch": "///", "edgecolor": "#CFCFCF"}
        elif number == done:
            look["facecolor"] = ORANGE
        elif number < done:
            look["facecolor"] = "#CFE3F1"
        axis.add_patch(Rectangle((j, i), 1, 1, **look))
        if number is not None and number <= done:
            axis.text(j + 0.5, i + 0.5, number, ha="center", va="center", fontsize=10)
    i, j = order[done - 1]
    axis.set(xlim=(0, 5), ylim=(5, 0), aspect=1, xticks=[], yticks=[], xlabel="keys")
    axis.set_title(f"step {done}: queries {i + 1}, keys {j + 1}")
    axis.spines[:].set_visible(False)
axes[0].set_ylabel("queries")
fig.suptitle("Causal attention in 5 × 5 blocks: orange now, blue done and forgotten")
plt.show()

# %% [markdown]
# **Memory.** XLA says, without running anything, how much a compiled program needs beside its
# arguments and results. A layer with four heads of 64 features, forward and backward: the library's
# all at once and in blocks of 128, and autodiff of the plain composition.


# %%
def by_layer(params, x, dout, block):
    """Forward and backward of a layer with four heads of 64 features."""
    layer = mbp.MultiHeadAttention(4, causal=True, block=block)
    out, residuals = layer.forward(params, x)
    return out, layer.backward(params, residuals, dout)


def by_grad(params, x, dout):
    """The same by jax.vjp of a plain composition."""

    def forward(p, x):
        pairs = ((p.Wq, p.bq), (p.Wk, p.bk), (p.Wv, p.bv))
        q, k, v = ((x @ W.T + b).reshape(len(x), -1, 4, 64) for W, b in pairs)
        S = jnp.einsum("mthd,mshd->mhts", q, k) / 8
        may_read = jnp.tril(jnp.ones(S.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(may_read, S, -1e9))
        O = jnp.einsum("mhts,mshd->mthd", weights, v)
        return O.reshape(x.shape) @ p.Wo.T + p.bo

    out, pull = jax.vjp(forward, params, x)
    return out, pull(dout)


def megabytes(function, T):
    """Temporary memory of the compiled program."""
    matrix, bias, sequence = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 256), (256,), (1, T, 256))
    )
    params = AttentionParams(*[matrix] * 4, *[bias] * 4)
    compiled = jax.jit(function).lower(params, sequence, sequence).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


lengths = (512, 2048, 8192)
WAYS = {
    "autodiff": (by_grad, ORANGE, "o-"),
    "all at once": (partial(by_layer, block=None), RED, "s--"),
    "blocks of 128": (partial(by_layer, block=128), BLUE, "o-"),
}
fig, axis = plt.subplots(figsize=(7.5, 4.4))
memory = {}
for name, (function, colour, style) in WAYS.items():
    memory[name] = [megabytes(function, each) for each in lengths]
    axis.loglog(lengths, memory[name], style, color=colour, label=name, linewidth=2)
    shown = "   ".join(f"{size:7.1f}" for size in memory[name])
    print(f"{name:<14} {shown}   MiB at T = {', '.join(map(str, lengths))}")
matrix = [4 * 4 * t**2 / 2**20 for t in lengths]
axis.loglog(lengths, matrix, ":", color="black", label="one $T \\times T$ matrix for each head")
axis.set(xlabel="length $T$", ylabel="temporary memory (MiB)", title="forward and backward")
axis.set_xticks(lengths, lengths)
axis.minorticks_off()
axis.legend(fontsize=9.5)
fig.suptitle("Memory of attention grows with $T^2$, or with $T$")
plt.show()
assert memory["blocks of 128"][-1] < 0.05 * memory["autodiff"][-1]

# %% [markdown]
# Autodiff and the derivation of section 2 both need about four $T \times T$ matrices for each head.
# By blocks, memory grows with $T$.
#
# ## 4. A GPT's backward pass on one page
#
# GPT-2 with one block, from the loss to the embedding. $E$ has a row for each token, $R$ a row for
# each place, and $N$, $N'$, $N''$ are layer norms. Biases are left out here, and are in the code:
#
# $$X_0 = E[\text{tokens}] + R, \quad H = X_0 + \text{Attention}(N(X_0)), \quad
# X_1 = H + W_2\, \text{gelu}(W_1 N'(H)), \quad Z = N''(X_1)\, E^{\mathsf T}.$$
#
# Nothing new is needed for the backward pass. It begins with $dZ = (\operatorname{softmax}(Z) - Y)
# / mT$, since the loss is the mean cross-entropy of the $mT$ next tokens. *A skip path adds*: the
# error of $H$ is that of $X_1$ plus what comes back through the MLP. *A norm* has the closed form
# of notebook 3, with the mean over features in place of the batch. And *the embedding is used
# twice*. Below, as a table that is read: row $v$ gets the errors of all places where the token is
# $v$. Above, as the matrix that makes logits: $dZ^{\mathsf T} N''(X_1)$. The two add:
#
# $$\boxed{\,dE_v = \sum_{t\,:\,\text{token}_t = v} dX_{0,t}
# \;+\; \big(dZ^{\mathsf T} N''(X_1)\big)_v\,}$$
#
# Here is all of it in `jnp`, with nothing of the library but the places of its parameters.


# %%
def norm(x, params):
    """Layer norm over features; and what its backward pass needs."""
    centred = x - x.mean(-1, keepdims=True)
    r = 1 / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred * r * params.scale + params.shift, (centred * r, r)


def norm_backward(dout, params, kept):
    """(dparams, dx)."""
    normalized, r = kept
    g, average = dout * params.scale, partial(jnp.mean, axis=-1, keepdims=True)
    dx = r * (g - average(g) - normalized * average(g * normalized))
    return type(params)((dout * normalized).sum((0, 1)), dout.sum((0, 1))), dx


def inner(z):
    """What gelu takes the tanh of: gelu(z) = z (1 + tanh(inner(z))) / 2."""
    return np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)


def outer(e, x):
    """dW of out = x Wᵀ: the sum over examples and places."""
    return jnp.einsum("mti,mtj->ij", e, x)


def one_page(params, tokens, y, heads):
    """(J, gradients, dE from below, dE from above)."""
    # parameters; the block's are stacked along a first axis, of one block here
    ((E, R, (block,), of_last, _),) = params
    ((of_first, p),), ((of_second, one, two),) = jax.tree.map(lambda leaf: leaf[0], block)
    E, R, (m, T), d = E.W, R.P, tokens.shape, E.W.shape[1] // heads
    cut, join = (lambda v: v.reshape(m, T, heads, d)), (lambda v: v.reshape(m, T, heads * d))
    may_read = np.tril(np.ones((T, T), bool))

    # forward
    X0 = E[tokens] + R[:T]
    N1, kept1 = norm(X0, of_first)
    Q, K, V = cut(N1 @ p.Wq.T + p.bq), cut(N1 @ p.Wk.T + p.bk), cut(N1 @ p.Wv.T + p.bv)
    S = jnp.einsum("mthd,mshd->mhts", Q, K) / np.sqrt(d)
    P = jnp.where(may_read, jnp.exp(S), 0)
    P = P / P.sum(-1, keepdims=True)
    O = join(jnp.einsum("mhts,mshd->mthd", P, V))
    H = X0 + O @ p.Wo.T + p.bo
    N2, kept2 = norm(H, of_second)
    z = N2 @ one.W.T + one.b
    a = z * (1 + jnp.tanh(inner(z))) / 2
    X1 = H + a @ two.W.T + two.b
    F, kept3 = norm(X1, of_last)
    Z = F @ E.T
    A = jnp.exp(Z) / jnp.exp(Z).sum(-1, keepdims=True)
    Y = jax.nn.one_hot(y, len(E), dtype=Z.dtype)
    J = -(Y * jnp.log(A)).sum(-1).mean()

    # backward: the head, whose weights are E
    dZ = (A - Y) / (m * T)
    dE_above, dF = outer(dZ, F), dZ @ E
    dlast, dX1 = norm_backward(dF, of_last, kept3)
    # the MLP, and its skip
    dtwo, da = type(two)(outer(dX1, a), dX1.sum((0, 1))), dX1 @ two.W
    t, slope = jnp.tanh(inner(z)), np.sqrt(2 / np.pi) * (1 + 0.044715 * (3 * z**2))
    dz = da * ((1 + t) + z * (1 - t**2) * slope) / 2
    done, dN2 = type(one)(outer(dz, N2), dz.sum((0, 1))), dz @ one.W
    dsecond, dH = norm_backward(dN2, of_second, kept2)
    dH = dX1 + dH
    # attention, and its skip
    dO = cut(dH @ p.Wo)
    dV = jnp.einsum("mhts,mthd->mshd", P, dO)
    dP = jnp.einsum("mthd,mshd->mhts", dO, V)
    dS = P * (dP - (dP * P).sum(-1, keepdims=True)) / np.sqrt(d)
    dQ = join(jnp.einsum("mhts,mshd->mthd", dS, K))
    dK, dV = join(jnp.einsum("mhts,mthd->mshd", dS, Q)), join(dV)
    errors = (dQ, dK, dV, dH)
    products = (outer(e, x) for e, x in zip(errors, (N1, N1, N1, O), strict=True))
    dattention = type(p)(*products, *(e.sum((0, 1)) for e in errors))
    dfirst, dX0 = norm_backward(dQ @ p.Wq + dK @ p.Wk + dV @ p.Wv, of_first, kept1)
    dX0 = dH + dX0
    # the embedding
    dR = jnp.zeros_like(R).at[:T].set(dX0.sum(0))
    dE_below = jnp.zeros_like(E).at[tokens].add(dX0)

    dblock = (((dfirst, dattention),), ((dsecond, done, dtwo),))
    dblock = jax.tree.map(lambda leaf: leaf[None], dblock)
    (embedding, position, _, _, head) = params[0]
    dE = type(embedding)(dE_below + dE_above)
    grads = ((dE, type(position)(dR), (dblock,), dlast, head),)
    return J, grads, dE_below, dE_above


# %% [markdown]
# The text is one that everybody knows. Its characters are the tokens, with a "z" that never occurs.
# Parameters are random numbers of ordinary size, not the small ones that training begins with,
# biases and norms' parameters too, so that no term is hidden by being small. The judge computes
# with 20 and with 40 digits. (It is a strict one. Written as `(3 * 0.044715) * z**2`, the slope of
# gelu is the same to a reader, but the product of the two constants is rounded to a double once
# more, and the judge says so.)

# %%
TEXT = "to be or not to be"
characters = sorted({*TEXT, "z"})
line = np.array([[characters.index(each) for each in TEXT]])
tokens, y = line[:, :-1], line[:, 1:]
one_block = mbp.gpt(len(characters), context=tokens.shape[1], width=8, heads=2, depth=1)
shapes = jax.eval_shape(one_block.init, jax.random.key(0), tokens)
params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, shapes)


def page_by_hand(params, tokens, y):
    """J and the gradient by the page above."""
    return one_page(params, tokens, y, 2)[:2]


def page_by_library(params, tokens, y):
    """The same by the library."""
    return mbp.manual_value_and_grads(params, tokens, y, network=one_block)


def page_by_autodiff(params, tokens, y):
    """The same by jax.grad of a GPT in plain jnp (`verify.text.plain`)."""

    def cost(params):
        log_A = jax.nn.log_softmax(plain.gpt(params, tokens, heads=2))
        return -jnp.take_along_axis(log_A, y[..., None], -1).mean()

    return jax.value_and_grad(cost)(params)


number = len(jax.tree.leaves(params))
for name, theirs in (("library", page_by_library), ("autodiff", page_by_autodiff)):
    verdict = judges.same(page_by_hand, theirs, params, tokens, y, judge=judges.digits)
    judged(f"J and all {number} gradients of a GPT: by hand, {name}", verdict)


def untied(params, tokens, y):
    """The same with the head's part of dE forgotten."""
    J, ((embedding, *rest),), dE_below, _ = one_page(params, tokens, y, 2)
    return J, ((type(embedding)(dE_below), *rest),)


verdict = judges.same(untied, page_by_autodiff, params, tokens, y, judge=judges.digits)
judged("the head's part of dE forgotten: by hand, autodiff", verdict, right=False)


# %%
def two_gradients(params, tokens, y):
    """dE from below and from above."""
    return dict(zip(("below", "above"), one_page(params, tokens, y, 2)[2:], strict=True))


given_text = (params, tokens, y)
both = trace(two_gradients, *given_text).run(given_text, Float64())  # NumPy's doubles, no compiler
below, above = both["below"], both["above"]
fig, axes = plt.subplots(1, 3, figsize=(13, 4.3), sharey=True)
bound = float(np.abs(below + above).max())
panels = {
    "from below: where it was read": below,
    "from above: $dZ^{\\mathsf{T}} N''(X_1)$": above,
    "$dE$": below + above,
}
for axis, (name, values) in zip(axes, panels.items(), strict=True):
    numbered(axis, values, size=8, bound=bound)
    axis.set(title=name, xlabel="feature")
names = [f'"{each}"' for each in characters]
axes[0].set_yticks(range(len(names)), names)
fig.suptitle(f'The embedding\'s two gradients for "{TEXT}"; "z" is never read')
plt.show()
unread = characters.index("z")
assert not below[unread].any() and above[unread].all()

# %% [markdown]
# A token that is not read gets nothing from below. From above it gets something at every place:
# softmax gave it a probability, and it never came.
#
# ## 5. Every intermediate of a two-layer GPT
#
# As in notebook 1, but without a tolerance. `mbp.intermediates` names what every layer made and the
# error that arrived there; `verify.reference` has the same names by autodiff, with zeros added at
# each place. Both programs run three times: in doubles, with a bound on the rounding of every
# entry, and with 20 and 40 digits. The table shows the largest difference in each, that in doubles
# also as a share of what the bounds allow. A right formula's difference goes from $10^{-20}$ to
# $10^{-40}$, a wrong one's stays. The blocks are one layer, `stack`, whose first axis counts them.

# %%
two_layers = mbp.gpt(7, context=5, width=8, heads=2, depth=2)
case = Case(two_layers, mbp.SoftmaxCrossEntropy(), (2, 5))
rule, problem = rules.of_case(case), tuple(case.problem())
ARITHMETICS = {"doubles": judges.BOUNDS, "20": Multiprecision(20), "40": Multiprecision(40)}
results = {
    name: [program.run(problem, arithmetic) for program in rule.programs(problem)]
    for name, arithmetic in ARITHMETICS.items()
}


def apart(name, arithmetic):
    """The largest difference of this result by hand and by autodiff."""
    ours, theirs = (np.asarray(getattr(r[name], "value", r[name])) for r in results[arithmetic])
    return float(np.max(np.abs(ours - theirs)))


PLACES = {
    "1": "embedding E",
    "2": "positions R",
    "3.1.1.1.1": "norm N",
    "3.1.1.1.2": "attention",
    "3.1.2.1.1": "norm N'",
    "3.1.2.1.2": "MLP, first",
    "3.1.2.1.3": "MLP, second",
    "4": "norm N''",
    "5": "head",
}
print(f"{'largest difference in':>79}")
columns = f"{'largest':>8}  {'doubles':<8}{'share':<9}{'20':<8}40 digits"
print(f"{'layer':<13} {'name':<18} {'shape':<14} {columns}")
entries, shown = 0, 0
manual, autodiff = results["doubles"]
for name in engine.in_order_of_computation(list(manual)):
    if name.startswith("grads "):  # the same once more, as the caller gets them
        continue
    verdict = judges.within_bounds({name: manual[name]}, {name: autodiff[name]})
    assert verdict.ok, name
    _, _, place = name.partition("1.")  # the network itself is the first child of `tied`
    theirs = np.asarray(getattr(autodiff[name], "value", autodiff[name]))
    entries, shown = entries + theirs.size, shown + 1
    told = "equal"
    if apart(name, "doubles"):
        told = f"{apart(name, 'doubles'):.0e}   {verdict.figure:.0e}"
    in_digits = f"{apart(name, '20'):.0e}   {apart(name, '40'):.0e}"
    told = f"{told:<14}   {in_digits}".replace("0e+00", "0    ")
    largest = np.abs(theirs).max()
    print(f"{PLACES.get(place, ''):<13} {name:<18} {theirs.shape!s:<14} {largest:>8.2g}  {told}")
print(f"{shown} intermediates, {entries} entries, each within its bound in doubles")
judged("all of them, in 20 and 40 digits", judges.digits(rule, problem))

# %% [markdown]
# The gradient of the tied embedding stands at its first place, `dW1.1`, with both parts in it.
# `dbk`, of the keys' bias, is 0 in mathematics and rounding here: it adds the same number to all
# scores of a query, which softmax ignores (exercise 4b). Bounds reckon with the worst at every
# step, and rounding errors partly cancel: so shares shrink on the way, and digits tell more at its
# end.
#
# ## 6. Trained on English
#
# Two models have learned the text of Python's own help, character by character: the GPT of section
# 4 with two blocks, and an LSTM that reads the text in pieces and hands its state on. Training
# takes minutes, so it isn't done here. Its results are read from small files that these commands
# make:

# %%
runs = {
    "GPT": json.loads(Path("04_gpt.json").read_text()),
    "LSTM": json.loads(Path("04_char_lstm.json").read_text()),
}
for name, run in runs.items():
    settings = run["settings"]
    print(run["command"])
    print(
        f"    {name}: {run['parameters']:,} parameters, depth {settings['depth']}, width "
        f"{settings['width']}, {run['steps']} steps of {settings['batch']} × {settings['context']} "
        f"characters in {run['seconds'] / 60:.1f} minutes on {run['device']}, {run['cores']} cores"
    )
    step, loss, _ = run["validation"][-1]
    bits = loss / np.log(2)
    print(f"    validation loss {loss:.3f} nats, {bits:.2f} bits per character, after step {step}")

# %% [markdown]
# What is a good loss? One that knows how often each character occurs has the entropy of their
# frequencies; one that also knows the character before has the conditional entropy of pairs. Both
# can be counted in the text itself.

# %%
text = corpus().text
codes = np.unique(list(text), return_inverse=True)[1]
pairs = np.zeros((codes.max() + 1,) * 2)
np.add.at(pairs, (codes[:-1], codes[1:]), 1)


def entropy(counts):
    """Of the frequencies, in nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


of_one = entropy(pairs.sum(1))
LINES = {
    f"{len(pairs)} characters, all alike": np.log(len(pairs)),
    "their frequencies": of_one,
    "frequencies of pairs": entropy(pairs.ravel()) - of_one,
}
fig, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8), width_ratios=(1.5, 1))
for (name, run), colour in zip(runs.items(), (BLUE, GREEN), strict=True):
    left.plot(*np.array(run["loss"]).T, color=colour, linewidth=1, alpha=0.5)
    steps, losses, _ = np.array(run["validation"]).T
    left.plot(steps, losses, "o-", color=colour, markersize=4, label=name)
    checked = run["autodiff"]
    manual_losses, auto_losses = np.array(checked["manual"]), np.array(checked["autodiff"])
    first = np.arange(1, len(manual_losses) + 1)
    right.plot(first, auto_losses, color=colour, linewidth=6, alpha=0.3)
    right.plot(first, manual_losses, color=colour, linewidth=1.3, label=name)
    print(
        f"{name}: the first {len(first)} losses are at most {checked['apart']:.0e} from jax.grad's "
        f"(relative), {checked['over_rounding']:.2g} times as far as one rounding leads"
    )
    assert checked["over_rounding"] <= LIMIT
for (name, height), style in zip(LINES.items(), (":", "--", "-."), strict=True):
    left.axhline(height, color=GREY, linestyle=style, linewidth=1.2, label=name)
left.set(xlabel="step", ylabel="cross-entropy (nats per character)")
left.set_title("training (thin) and validation (circles)")
left.set_ylim(bottom=0)
left.legend(fontsize=9, ncols=2)
right.set(xlabel="step", ylabel="training loss")
right.set_title("first steps: by hand (thin), by jax.grad (wide)")
right.legend(fontsize=9.5)
fig.suptitle("Two language models trained by hand-derived gradients")
plt.show()

# %% [markdown]
# Training losses are means over neighbouring steps. Both models soon know more than pairs of
# characters; in the end the training loss lies below the validation loss, since the text is short
# for so many parameters. How far the first steps may be from those of `jax.grad` is not chosen:
# parameters are moved by one rounding each, and the distance that follows is the yardstick.
#
# **What they write**, one character at a time, each drawn from the model's own probabilities:

# %%
for name, run in runs.items():
    print(f"--- {name} {'-' * 80}")
    for each in run["sample"][:900].splitlines():
        print(textwrap.fill(each, 100, replace_whitespace=False))

# %% [markdown]
# ## 7. What to take home; exercises
#
# - *A number that is used twice gets two errors, and they add*: a state by its output and the next
#   step, $x$ by queries, keys and values, a path by its skip and its body, $E$ by both ends.
# - *Only what the next step needs belongs into the loop.* All else is one product after it.
# - Errors vanish in the RNN through $U$ and $g'$; in the LSTM they pass along a sum, through gates
#   which the network sets. Open gates are learned, or asked for by $b_f$; they aren't given.
# - *Softmax's Jacobian is dense, and costs one mean.* $dS = P \odot (dP - D)$.
# - $P = e^{S - L}$ and $D = \operatorname{rowsum}(dO \odot O)$ are equalities: attention in linear
#   memory is the same function, not an approximation.
# - A GPT's backward pass has some thirty lines, and each can be judged by itself.
#
# **Exercises.** Fill in what is `None` and run the cell. As committed, nothing is filled in. All
# arguments are small integers, or such divided by powers of 2, so that right answers are exact: the
# checker, `checker.py` beside this notebook, asks for equality. Solutions follow at the end.


# %%
def integers(*shape):
    """Small integers as floats: sums and products of some of them are exact."""
    return rng.integers(-2, 3, size=shape).astype(float)


# %% [markdown]
# **Exercise 1.** Backpropagation through time for one example and a network without an activation,
# $h_t = W x_t + U h_{t-1}$. `x` is $(T, F)$, `h` is $(T + 1, n)$ from $h_0$ to $h_T$, `dout` is
# $(T, n)$.


# %%
def my_recurrent_backward(W, U, x, h, dout):
    """dW, dU, dx, and dh0, of the shapes of W, U, x and h[0]."""
    dW = None
    dU = None
    dx = None
    dh0 = None
    return {"dW": dW, "dU": dU, "dx": dx, "dh0": dh0}


W_1, U_1, x_1, dout_1 = integers(2, 3), integers(2, 2), integers(4, 3), integers(4, 2)
h_1 = [integers(2)]
for each in x_1:
    h_1.append(W_1 @ each + U_1 @ h_1[-1])
h_1 = np.stack(h_1)


def recurrent_1(W, U, x, h):
    """The judge's own: every out_t, by the formula."""
    out = []
    for each in x:
        h = W @ each + U @ h
        out.append(h)
    return jnp.stack(out)


right_1 = jax.jit(lambda *args: jax.vjp(recurrent_1, *args)[1](dout_1))(W_1, U_1, x_1, h_1[0])
exercise_1 = (
    (W_1, U_1, x_1, h_1, dout_1),
    dict(zip(("dW", "dU", "dx", "dh0"), right_1, strict=True)),
)
solved_1 = check_answer(my_recurrent_backward, *exercise_1)

# %% [markdown]
# This is what the checker says of a backward pass in which nothing comes back from later steps:


# %%
def with_mistake(W, U, x, h, dout):
    """Each step by itself: truncated after one."""
    return {"dW": dout.T @ x, "dU": dout.T @ h[:-1], "dx": dout @ W, "dh0": dout[0] @ U}


assert not check_answer(with_mistake, *exercise_1)

# %% [markdown]
# **Exercise 2.** A softmax with a temperature, $P = \operatorname{softmax}(S / \tau)$ for each row.
# Given $P$, $dP$ and $\tau$, find $dS$ and $d\tau$ (that needs $S$ too).


# %%
def my_softmax_backward(S, P, tau, dP):
    """dS, (T, S), and dtau, a number."""
    dS = None
    dtau = None
    return {"dS": dS, "dtau": dtau}


P_2 = np.array([[4, 2, 1, 1], [1, 1, 4, 2], [2, 2, 2, 2]]) / 8
S_2, dP_2, tau_2 = 2 * np.log2(P_2), integers(3, 4), 2.0  # integers: only P has to be exact
jacobians = [(np.diag(p) - np.outer(p, p)) / tau_2 for p in P_2]
dS_2 = np.stack([J @ each for J, each in zip(jacobians, dP_2, strict=True)])
exercise_2 = ((S_2, P_2, tau_2, dP_2), {"dS": dS_2, "dtau": np.array(-(dS_2 * S_2).sum() / tau_2)})
solved_2 = check_answer(my_softmax_backward, *exercise_2)

# %% [markdown]
# **Exercise 3.** A tied embedding with nothing between its ends: $Z = E[\text{tokens}]\, E^{\mathsf
# T}$. Given $dZ$, $(T, V)$, find $dE$.


# %%
def my_tied_backward(E, tokens, dZ):
    """dE, (V, d)."""
    dE = None
    return {"dE": dE}


E_3, tokens_3, dZ_3 = integers(5, 3), np.array([0, 3, 3, 1]), integers(4, 5)
right_3 = jax.jit(lambda E: jax.vjp(lambda E: E[tokens_3] @ E.T, E)[1](dZ_3)[0])(E_3)
exercise_3 = ((E_3, tokens_3, dZ_3), {"dE": right_3})
solved_3 = check_answer(my_tied_backward, *exercise_3)

# %% [markdown]
# **Exercise 4** (on paper).
#
# a. A text of 1000 characters is read by an LSTM in pieces of 100, and each piece begins with the
# state in which the last one ended. Which part of the gradient is missing?
#
# b. Why is $db_K$, the gradient of the keys' bias, zero?
#
# c. Attention has a window: query $t$ reads keys $t - w < s \le t$. How many blocks of $b \times b$
# are computed for $T = 1024$, $w = b = 128$? How many without the window?
#
# d. Query 0 of causal attention reads only itself. Which gradients does its error reach?
#
# <details>
# <summary>Answers</summary>
#
# a. What earlier pieces' parameters did to the state: $dh_0$ and $dc_0$ of each piece are thrown
# away. The state itself is right.
#
# b. $b_K$ adds $Q_t \cdot b_K / \sqrt d$ to all scores of query $t$. Softmax ignores it, so the
# rows of $dS$ sum to zero, and $db_K$ is the sum over $t$ of $Q_t$ times such a row sum.
#
# c. A query block meets its own key block and the one before: $8 + 7 = 15$. Without the window
# $8 \cdot 9 / 2 = 36$.
#
# d. $dV_0$, and through it $W_V$, $b_V$ and $x_0$; and $W_O$, $b_O$. There is one weight, $P = 1$,
# whatever the score: $dS = 0$, so nothing through queries and keys.
#
# </details>
#
# Two of them, computed: b in growing precision, d by the formulas of section 2.


# %%
def dbk(Q, K, V, dO):
    """The gradient of a bias that is added to all keys."""
    return value("dK", {"Q": Q, "K": K, "V": V, "dO": dO}).sum(0)


def zero(Q, K, V, dO):
    """Zeros of its shape."""
    return jnp.zeros_like(K[0])


judged("b. the keys' bias has no gradient", judges.same(dbk, zero, *four, judge=judges.digits))
names = ("dQ", "dK", "dV")
errors = trace(lambda known: {name: value(name, known) for name in names}, given)
of_first = given | {"dO": given["dO"] * (np.arange(T) == 0)[:, None]}
found = errors.run((of_first,), Float64())
reached = {name: np.any(each, axis=-1) for name, each in found.items()}
print("d. places that an error of the first query reaches:")
print("  ", {name: np.flatnonzero(places).tolist() for name, places in reached.items()})
assert not reached["dQ"].any() and not reached["dK"].any()
assert np.flatnonzero(reached["dV"]).tolist() == [0]

# %% [markdown]
# ### Solutions
#
# They run through the same checker.


# %%
def recurrent_backward_solution(W, U, x, h, dout):
    """Exercise 1: the loop makes dz, and one product each the rest."""
    dz, from_later = np.zeros(dout.shape), np.zeros(len(U))
    for t in reversed(range(len(x))):
        dz[t] = dout[t] + from_later
        from_later = U.T @ dz[t]
    return {"dW": dz.T @ x, "dU": dz.T @ h[:-1], "dx": dz @ W, "dh0": from_later}


def softmax_backward_solution(S, P, tau, dP):
    """Exercise 2: S enters as S / tau, and so does tau."""
    dscaled = P * (dP - (dP * P).sum(-1, keepdims=True))
    return {"dS": dscaled / tau, "dtau": -(dscaled * S).sum() / tau**2}


def tied_backward_solution(E, tokens, dZ):
    """Exercise 3: as the head's matrix, and as rows that were read."""
    dE = dZ.T @ E[tokens]
    np.add.at(dE, tokens, dZ @ E)  # += would count a token once
    return {"dE": dE}


assert check_answer(recurrent_backward_solution, *exercise_1)
assert check_answer(softmax_backward_solution, *exercise_2)
assert check_answer(tied_backward_solution, *exercise_3)

# %% [markdown]
# ## Sources
#
# - J. L. Elman, *Finding structure in time*, Cognitive Science 14 (1990), and P. J. Werbos,
#   *Backpropagation through time: what it does and how to do it*, Proceedings of the IEEE 78
#   (1990).
# - Y. Bengio, P. Simard, P. Frasconi, *Learning long-term dependencies with gradient descent is
#   difficult* (1994), and R. Pascanu, T. Mikolov, Y. Bengio, *On the difficulty of training
#   recurrent neural networks* (2013), arXiv:1211.5063: vanishing and exploding.
# - S. Hochreiter, J. Schmidhuber, *Long short-term memory*, Neural Computation 9 (1997); F. A.
#   Gers, J. Schmidhuber, F. Cummins, *Learning to forget* (2000): the forget gate; R. Jozefowicz,
#   W. Zaremba, I. Sutskever, *An empirical exploration of recurrent network architectures* (2015):
#   its bias.
# - A. Vaswani et al., *Attention is all you need* (2017), arXiv:1706.03762.
# - M. Milakov, N. Gimelshein, *Online normalizer calculation for softmax* (2018), arXiv:1805.02867;
#   M. N. Rabe, C. Staats, *Self-attention does not need O(n²) memory* (2021), arXiv:2112.05682;
#   T. Dao et al., *FlashAttention* (2022), arXiv:2205.14135: attention in blocks.
# - A. Radford et al., *Language models are unsupervised multitask learners* (2019): GPT-2; O.
#   Press, L. Wolf, *Using the output embedding to improve language models* (2017),
#   arXiv:1608.05859: tied.
