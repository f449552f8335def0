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
# # Performance: what autodiff stores, what the formula needs
#
# `jax.grad` and a backward pass by hand compute the same numbers. Where one of them is faster or
# smaller, it is because of what goes from the forward pass to the backward pass, and how often it
# is read and written. Autodiff has a rule for each operation, and each rule keeps what it needs, by
# itself. A derivation looks at the whole formula and asks what is left in it when all is
# simplified. `python -m benchmarks` measures what this is worth, in time and memory, and prints a
# table. This notebook goes through its rows and says *why* each comes out as it does: the formula,
# what a general rule has to keep, what this formula needs, and a measurement of both.
#
# All figures are computed in the cells. Memory is counted and never changes from run to run. Times
# are of the machine on which the notebook was run, and noisy: they illustrate, the table measures.
# All outputs are kept, so the notebook can be read without running anything.
#
# 1. What is kept: element-wise functions, norms, softmax
# 2. What an operation costs: the roof over every machine
# 3. Dense networks: as fast, and ready sooner
# 4. Loops: a scan keeps what its body returns, and carries what it adds
# 5. Attention: $T \times T$ numbers that need not be there
# 6. Linear layer and cross-entropy: the loss that is its own backward pass
# 7. Per-example norms: a length without the vector
# 8. Depth: stack, checkpoint, reversible
# 9. Where nothing is won, and how to measure fairly
# 10. Exercises, with a checker; solutions

# %%
from functools import partial
from time import perf_counter

import jax

jax.config.update("jax_pprint_use_color", False)  # jaxprs in black

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import manual_bp as mbp
from manual_bp.losses.linear_cross_entropy import Params as HeadParams
from verify import judges

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
MEBIBYTE = 2**20
rng = np.random.default_rng(0)


def normal(*sizes):
    """Random numbers; nothing in them is equal or zero by chance."""
    return jnp.array(rng.normal(size=sizes), jnp.float32)


def shape(*sizes, dtype=jnp.float32):
    """A shape in an array's place: enough to trace and compile a program."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def drawn(layer, x):
    """Random parameters for a layer: biases of 0 and scales of 1 would hide something."""
    return jax.tree.map(
        lambda leaf: normal(*leaf.shape), jax.eval_shape(layer.init, jax.random.key(0), x)
    )


def forward_of(layer):
    """The layer's forward pass as a function of params and x, for autodiff."""
    return lambda params, x: layer.forward(params, x)[0]


def by_hand(layer):
    """(dparams, dx) of half the squares of the output, so that the error is the output."""

    def run(params, x):
        out, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, out)

    return run


def by_autodiff(function):
    """The same by jax.grad of function(params, x)."""
    return jax.grad(lambda params, x: 0.5 * (function(params, x) ** 2).sum(), (0, 1))


def judged(name, ours, theirs, *args, judge=judges.bounds):
    """Print whether two programs compute the same, and fail unless they do."""
    verdict = judges.same(ours, theirs, *args, judge=judge)
    print(f"{name:<56} {'the same' if verdict.ok else 'not the same'}")
    assert verdict.ok, verdict


def compiled(function, *args):
    """The function, compiled for arguments of these shapes; nothing is run."""
    return jax.jit(lambda *args: function(*args)).lower(*args).compile()


def temporary(function, *args):
    """What the compiled program needs beside arguments and results, in MiB."""
    return compiled(function, *args).memory_analysis().temp_size_in_bytes / MEBIBYTE


def medians(runs, rounds=5, of=np.median):
    """Seconds of each, measured in turn, after one run that isn't measured."""
    times = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(rounds):
        for name, run in runs.items():
            started = perf_counter()
            jax.block_until_ready(run())
            times[name].append(perf_counter() - started)
    return {name: float(of(each)) for name, each in times.items()}


def ready(function, *args):
    """A compiled program and its arguments, to be called."""
    program = compiled(function, *args)
    return lambda: program(*args)


print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}")

# %% [markdown]
# ## 1. What is kept
#
# `jax.vjp(f, *args)` runs `f` and returns the output and a function, the backward pass. All that
# this function knows of the forward pass lies in it as arrays: they are its leaves as a pytree.
# Nothing else is kept, so they can be looked at, and counted. Here is GELU in the form with tanh,
#
# $$g(z) = \tfrac12 z\,\big(1 + \tanh v\big), \qquad v = \sqrt{2/\pi}\,(z + 0.044715\, z^3),$$
#
# and the operations that made the arrays which autodiff keeps of it:


# %%
def gelu_of_jnp(z):
    """As one writes it."""
    return 0.5 * z * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def stored(function, *args):
    """The arrays that the function of jax.vjp has with it."""
    return jax.tree.leaves(jax.vjp(function, *args)[1])


program = jax.make_jaxpr(lambda z: stored(gelu_of_jnp, z))(normal(64, 128)).jaxpr
made_by = {id(out): each.primitive.name for each in program.eqns for out in each.outvars}
for leaf in program.outvars:
    if leaf.aval.size > 1:
        print(f"{leaf.aval!s:<16} made by {made_by[id(leaf)]}")

# %% [markdown]
# Each of the products, powers and the tanh has its rule: $d(ab) = a\,db + b\,da$ keeps the factors,
# a power keeps its slope, tanh its value. None knows of the others, and together they keep several
# arrays of the size of $z$. But the formula is
#
# $$dz = da \odot g'(z),$$
#
# one array. Which one is a choice: $g'(z)$, or $z$ itself, from which $g'$ is computed again. The
# output $a$ isn't enough: $g$ isn't monotone, so $z$ can't be had back from it.
#
# The same question for other layers, $x$ being the input, $\langle v \rangle$ a mean:
#
# | layer | backward | needs beside $x$ |
# |---|---|---|
# | relu | $dz = da \odot [z > 0]$, and $z > 0$ just where $a > 0$ | nothing but $a$, the output |
# | tanh | $dz = da \odot (1 - a^2)$ | nothing but $a$ |
# | $\sigma$ | $dz = da \odot a \odot (1 - a)$ | nothing but $a$ |
# | softmax | $dx = a \odot (da - \langle da, a \rangle)$ | nothing but $a$ |
# | RMSNorm | $dx = r\,(g - \hat x \langle g \odot \hat x \rangle)$ | one number for a row |
# | LayerNorm | the same with $g - \langle g \rangle$ for the first $g$ | two for a row |
# | BatchNorm | $dx = \gamma r\,(da - \frac{d\beta + \hat x d\gamma}{n})$ | two for a channel |
# | SwiGLU | $dz = dh \odot u \odot g'(z)$, $du = dh \odot g(z)$ | $z$ and $u$ |
#
# (In the norms $r$ is the inverse of the root, and $g = \gamma \odot da$. In the gated layer $dh$
# is the error of $g(z) \odot u$.)
#
# What is counted below: the bytes of what is kept, in units of $x$. Arrays with the same numbers
# count once, in whatever order they have them. Parameters, $x$ and the output count nothing: they
# are there anyway, since somebody made $x$ and somebody reads the output. Nor do constants, which
# a compiler needn't store. All this is in favour of autodiff, which repeats itself often.


# %%
def rows_normalised(x, axis, eps, centred=True):
    """A norm as one writes it."""
    x = x - x.mean(axis, keepdims=True) if centred else x
    return x * jax.lax.rsqrt((x**2).mean(axis, keepdims=True) + eps)


def swiglu(params, x):
    """As one writes it."""
    return (jax.nn.silu(x @ params.W_gate.T) * (x @ params.W_up.T)) @ params.W_down.T


LAYERS = {
    "relu": (mbp.relu, lambda p, x: jax.nn.relu(x)),
    "tanh": (mbp.tanh, lambda p, x: jnp.tanh(x)),
    "sigmoid": (mbp.sigmoid, lambda p, x: jax.nn.sigmoid(x)),
    "silu": (mbp.silu, lambda p, x: jax.nn.silu(x)),
    "GELU": (mbp.gelu, lambda p, x: jax.nn.gelu(x, approximate=False)),
    "GELU (tanh)": (mbp.gelu_tanh, lambda p, x: jax.nn.gelu(x)),
    "softmax": (mbp.Softmax(), lambda p, x: jax.nn.softmax(x)),
    "RMSNorm": (mbp.RMSNorm(), lambda p, x: p.scale * rows_normalised(x, -1, 1e-6, False)),
    "LayerNorm": (mbp.LayerNorm(), lambda p, x: p.scale * rows_normalised(x, -1, 1e-5) + p.shift),
    "BatchNorm": (mbp.BatchNorm(), lambda p, x: p.scale * rows_normalised(x, 0, 1e-5) + p.shift),
    "SwiGLU": (mbp.GatedMLP(128), swiglu),
}


def numbers_of(leaf):
    """What is in an array, in whatever order."""
    leaf = np.asarray(leaf)
    return leaf.dtype, np.sort(leaf.ravel())


def kept_alone(leaves, there):
    """The bytes of these arrays, of each only once, without constants and what is there anyway."""
    seen = [numbers_of(leaf) for leaf in jax.tree.leaves(there)]
    total = 0
    for leaf in jax.tree.leaves(leaves):
        dtype, numbers = numbers_of(leaf)
        known = any(dtype == d and np.array_equal(numbers, n) for d, n in seen)
        if not known and numbers[0] != numbers[-1]:
            seen.append((dtype, numbers))
            total += numbers.nbytes
    return total


x = normal(64, 128)
kept = {}
for name, (layer, idiom) in LAYERS.items():
    params = drawn(layer, x)
    out, residuals = layer.forward(params, x)
    there = params, x, out
    found = [residuals, stored(forward_of(layer), params, x), stored(idiom, params, x)]
    kept[name] = [kept_alone(each, there) / x.nbytes for each in found]

print("equal gradients, of half the squares of the output:")
for name, (layer, idiom) in LAYERS.items():
    layer = mbp.GatedMLP(3) if name == "SwiGLU" else layer
    few = rng.normal(size=(3, 4))
    of_few = jax.tree.map(np.float64, drawn(layer, shape(3, 4)))
    judged(name, by_hand(layer), by_autodiff(idiom), of_few, few)

# %%
WAYS = {"by hand": BLUE, "jax.grad of the same": ORANGE, "jax.grad of jax.nn, or as written": GREY}
fig, axis = plt.subplots(figsize=(10.5, 5.6))
y = np.arange(len(kept))
for which, (way, colour) in enumerate(WAYS.items()):
    values = [each[which] for each in kept.values()]
    drawn_bars = axis.barh(y + 0.27 * (which - 1), values, 0.26, color=colour, label=way)
    texts = [f"{value:.2f}" if value else "0" for value in values]
    axis.bar_label(drawn_bars, texts, padding=3, fontsize=8.5)
axis.set_yticks(y, list(kept))
axis.invert_yaxis()
axis.set(xlabel="arrays of the size of x, beside x, the output and parameters")
axis.set_title("Kept for the backward pass alone, as traced, 64 × 128")
axis.legend(loc="upper right")
plt.show()
for name, (ours, same, idiom) in kept.items():
    assert ours <= min(same, idiom), name
assert kept["softmax"][0] == 0
spared = [name for name, (ours, same, idiom) in kept.items() if ours < 0.1 < min(same, idiom)]
print("by hand next to nothing where autodiff keeps arrays:", ", ".join(spared))

# %% [markdown]
# Of softmax nothing is kept beside its output, and norms keep numbers of each row or channel. Of
# LayerNorm autodiff keeps three arrays: $x - \langle x \rangle$ for the product with $r$, twice
# that for the square, and $\hat x$ for the product with $\gamma$. Up to a number for each row they
# are one, and $x$ stands in for it. Of softmax it keeps the exponentials and their sum, where the
# formula has their quotient, which is the output.
#
# *Tanh and sigmoid could do with the output alone.* Where the library keeps an array for them, it
# is because $1 - a$ is 0 where $a$ has been rounded to 1, and $g'(z)$ isn't. Exercise 1 does
# without. Relu alone keeps a mask, a byte for each entry, as `jax.nn.relu` does: who reads its
# output, a pool or a sum, needn't keep it. In a dense layer it does with the output, which the
# dense layer above keeps too. Of the mask a bit is enough: exercise 3.
#
# This is what is kept *before the compiler*. Under `jit` XLA sees forward and backward pass at once
# and may compute something again rather than store it, which section 9 shows. Where it can't, the
# bytes stay: out of a loop, out of one compiled function into another, or where the function is
# called without `jit`, as here.
#
# ## 2. What an operation costs
#
# A machine can multiply so many numbers in a second, and move so many bytes. An operation that
# does $F$ flops (floating-point operations) and moves $B$ bytes takes at least
#
# $$\max\!\Big(\frac{F}{\text{peak}},\ \frac{B}{\text{bandwidth}}\Big), \qquad\text{so}\qquad
# \frac{F}{\text{time}} \le \min\big(\text{peak},\ I \cdot \text{bandwidth}\big), \quad
# I = \frac FB .$$
#
# Over the intensity $I$ this is a roof: a slope, then flat. Left of the edge, flops are free, and
# each byte less is time won. Right of it, bytes are free, and only fewer flops help, which a
# derivation seldom has. Peak and bandwidth are measured here, as the quickest of twenty runs of a
# matrix product and of a sum over 64 MiB. The points are some of the operations that follow, by
# their medians.

# %%
STEPS, ROWS, WIDTH = 64, 32, 128  # of an LSTM: U is (4 · 128, 128)


def softmax_backward(a, da):
    """dx = a ⊙ (da - <da, a>)."""
    return a * (da - (da * a).sum(-1, keepdims=True))


def added_in_loop(dz, h):
    """dU, by an update at each step."""
    start = jnp.zeros((dz.shape[-1], h.shape[-1]))
    return jax.lax.scan(lambda dU, at: (dU + at[0].T @ at[1], None), start, (dz, h))[0]


def after_loop(dz, h):
    """dU, by one product."""
    return dz.reshape(-1, dz.shape[-1]).T @ h.reshape(-1, h.shape[-1])


square, long_vector = normal(1024, 1024), normal(2**24)
a, da = jax.nn.softmax(normal(2048, 1024)), normal(2048, 1024)
dz, h = normal(STEPS, ROWS, 4 * WIDTH), normal(STEPS, ROWS, WIDTH)
wide = normal(2048, 1024)
products = 2 * dz.size * WIDTH
# flops and bytes of each, as the formula has them; tanh counts as one
OPERATIONS = {
    "softmax, backward": ((softmax_backward, a, da), 4 * a.size, 3 * a.nbytes),
    "GELU (tanh), one pass": ((gelu_of_jnp, da), 9 * da.size, 2 * da.nbytes),
    "dU added in each step": (
        (added_in_loop, dz, h),
        products,
        dz.nbytes + h.nbytes + STEPS * 2 * 4 * 4 * WIDTH * WIDTH,
    ),
    "dU after the loop": (
        (after_loop, dz, h),
        products,
        dz.nbytes + h.nbytes + 4 * 4 * WIDTH * WIDTH,
    ),
    "dW of a dense layer": (
        (lambda dz, a: dz.T @ a, wide, da),
        2 * wide.size * 1024,
        wide.nbytes + da.nbytes + 4 * 1024 * 1024,
    ),
}
runs = {name: ready(*called) for name, (called, _, _) in OPERATIONS.items()}
took = medians(runs, rounds=7)
roof = {"peak": ready(jnp.matmul, square, square), "bandwidth": ready(jnp.sum, long_vector)}
quickest = medians(roof, rounds=20, of=min)
peak, bandwidth = 2 * 1024**3 / quickest["peak"], long_vector.nbytes / quickest["bandwidth"]
edge = peak / bandwidth

fig, axis = plt.subplots(figsize=(9.5, 4.8))
over = np.geomspace(0.15, 400, 200)
axis.plot(over, np.minimum(peak, over * bandwidth) / 1e9, color="black", label="the roof, measured")
axis.axvline(edge, color=GREY, linestyle=":")
for (name, (_, flops, moved)), colour in zip(
    OPERATIONS.items(), (RED, PURPLE, ORANGE, BLUE, GREEN), strict=True
):
    axis.plot(flops / moved, flops / took[name] / 1e9, "o", markersize=9, color=colour, label=name)
axis.set(xscale="log", yscale="log", xlabel="intensity (flops per byte)", ylabel="Gflop/s")
axis.set_title("The roof of this machine in this run")
axis.legend(loc="lower right")
plt.show()
print(
    f"peak {peak / 1e9:.0f} Gflop/s, bandwidth {bandwidth / 1e9:.0f} GB/s: the edge is at "
    f"{edge:.0f} flops per byte"
)
in_loop, at_once = took["dU added in each step"], took["dU after the loop"]
print(f"dU after the loop took {at_once / in_loop:.2f} of the time of dU added in each step")

# %% [markdown]
# A point above the slope finds its arrays in the cache. Points well below the roof are bound by
# something else: by tanh, which takes many operations, by the overhead of a loop's turn, by memory
# that the system has to hand out for a result, by a product of a shape that the library of products
# likes less.
#
# The rows of the benchmarks are of two kinds. Norms, activations, softmax and recurrent steps lie
# left of the edge: what counts is how many arrays are read and written. Dense layers lie far right,
# and there is little to win. A derivation can also move an operation to the right, as the two
# points $dU$ show: as many flops, fewer bytes. Section 4 comes back to them.
#
# ## 3. Dense networks: as fast, and ready sooner
#
# The formulas are $dZ = dA \odot g'(Z)$, $dW = dZ^{\mathsf T} A$, $dA = dZ\, W$: three products for
# each layer, of which autodiff makes the same three, with the same operands. No flops are spared,
# and the products are nearly all there is. So times are about the same, and the benchmark holds
# ours to no more than `jax.grad`'s.
#
# What differs is how long it takes until there is a program. `jax.grad` traces the forward pass,
# makes tangents of each operation, takes the known parts apart from the unknown ones, and
# transposes the latter. A backward pass by hand is traced once, as it stands.


# %%
def equations(jaxpr):
    """All equations of a traced program, those of functions within it too."""
    for equation in jaxpr.eqns:
        yield equation
        for param in equation.params.values():
            for inner in param if isinstance(param, tuple | list) else (param,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


loss = mbp.SoftmaxCrossEntropy()


def of_jax_nn(params, x, y):
    """The mean loss as one writes it."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer.W.T + layer.b)
    logits = x @ params[-1].W.T + params[-1].b
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def dense_ways(depth):
    """Three ways to the gradient of a network, and arguments."""
    network = mbp.mlp((64,) * (depth + 1))
    x, y = shape(32, 64), shape(32, dtype=jnp.int32)

    def mean(params, x, y):
        return loss.value(network.forward(params, x)[0], y).mean()

    ways = (
        partial(mbp.manual_grads, network=network, loss=loss),
        jax.grad(mean),
        jax.grad(of_jax_nn),
    )
    return dict(zip(WAYS, ways, strict=True)), (
        jax.eval_shape(network.init, jax.random.key(0), x),
        x,
        y,
    )


DEPTHS = (4, 16, 64)
traced = {way: [] for way in WAYS}
for depth in DEPTHS:
    ways, args = dense_ways(depth)
    for way, function in ways.items():
        traced[way].append(sum(1 for _ in equations(jax.make_jaxpr(function)(*args).jaxpr)))

waited = {way: [] for way in WAYS}
for _ in range(2):
    for way, function in ways.items():
        started = perf_counter()
        lowered = jax.jit(lambda *args, f=function: f(*args)).lower(*args)
        traced_at = perf_counter()
        lowered.compile()
        waited[way].append((traced_at - started, perf_counter() - traced_at))
waited = {way: 1e3 * np.min(each, axis=0) for way, each in waited.items()}

fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 3.8))
for way, colour in WAYS.items():
    left.plot(DEPTHS, traced[way], "o-", color=colour, label=way)
left.set(xlabel="layers", ylabel="equations", title="the traced program")
left.legend()
labels = ["by hand", "jax.grad\nof the same", "jax.grad\nof jax.nn"]
tracing, compiling = np.array(list(waited.values())).T
right.bar(labels, tracing, color=list(WAYS.values()))
right.bar(
    labels, compiling, bottom=tracing, color="white", edgecolor=list(WAYS.values()), hatch="//"
)
right.set(ylabel="ms", title="64 layers: trace and lower (full), compile (hatched)")
plt.show()
ours, same, idiom = (waited[way] for way in WAYS)
print(
    f"64 layers: {traced['by hand'][-1]} equations by hand, {traced['jax.grad of the same'][-1]} "
    f"and {list(traced.values())[-1][-1]} by jax.grad"
)
print(
    f"in this run, traced and lowered in {ours[0] / same[0]:.2f} of jax.grad's time of the same, "
    f"{ours[0] / idiom[0]:.2f} of jax.nn's; with compiling {sum(ours) / sum(same):.2f} and "
    f"{sum(ours) / sum(idiom):.2f}"
)
assert all(ours < same for ours, same in zip(*list(traced.values())[:2], strict=True))

# %% [markdown]
# The compiler takes the longer program down to much the same instructions, so compiling takes about
# as long, and running too. Where a step runs a million times, none of this matters; where one tries
# shapes and ideas all day, one waits for it each time.

# %% [markdown]
# ## 4. Loops
#
# A `jax.lax.scan` returns what its body returns for each turn, stacked. The backward loop is
# another loop, so whatever it needs must go through these stacks: out of the first program, into
# memory, into the second. Here XLA can't compute something again rather than store it. Under `jit`
# it drops what nobody reads, constants and copies, and no more. So it pays to return little.
#
# **A stack of dense layers**, $A_l = g(A_{l-1} W_l^{\mathsf T} + b_l)$ with relu. The formula needs
# $A_{l-1}$, for $dW$, and where $A_l > 0$. The latter is the next layer's $A_{l-1}$: one array for
# each layer is enough. **An LSTM**, notebook 4's, with
#
# $$z_t = W x_t + U h_{t-1} + b, \quad c_t = f \odot c_{t-1} + i \odot g, \quad
# h_t = o \odot \tanh c_t,$$
#
# needs $h_{t-1}$ for $dU$, $c_{t-1}$, and the four parts of $z_t$ or of the gates: all slopes and
# $c_t$ follow from these. Autodiff keeps gates, slopes, and the factors of each product.
#
# And the loops carry something from turn to turn. Backward it is the error. Since each turn uses
# the same $U$, autodiff also has $dU$ there:
#
# $$dU \leftarrow dU + dz_t^{\mathsf T} h_{t-1} \quad\text{in each turn,}\qquad\text{where}\qquad
# \sum_t dz_t^{\mathsf T} h_{t-1} = dz^{\mathsf T} h$$
#
# is one product after the loop, over all steps and examples at once. That is the pair of points
# in section 2. In the jaxprs one can see both: what a turn returns, and what it carries.


# %%
def loops(function, *args):
    """Of the forward loops what a turn returns, of the backward ones what it carries: arrays."""
    returned, carried = [], []
    for equation in equations(jax.make_jaxpr(function)(*args).jaxpr):
        if equation.primitive.name == "scan":
            count = equation.params["num_carry"]
            outs = [each.aval for each in equation.params["jaxpr"].jaxpr.outvars]
            if equation.params["reverse"]:
                carried += outs[:count]
            else:
                returned += outs[count:]
    return returned, carried


def lstm_as_written(params, x):
    """An LSTM in a scan, all products in its body."""
    W, U, b = params

    def step(state, x):
        h, c = state
        i, f, g, o = jnp.split(x @ W.T + h @ U.T + b, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((len(x), U.shape[1]), x.dtype)
    _, out = jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(out, 0, 1)


def stack_as_written(params, x):
    """Dense layers in a scan."""
    return jax.lax.scan(lambda x, p: (jax.nn.relu(x @ p.W.T + p.b), None), x, params[0])[0]


LOOPS = {
    "64 dense layers": (mbp.stack(mbp.Dense(WIDTH, mbp.relu), 64), stack_as_written, (512, WIDTH)),
    "LSTM": (mbp.LSTM(WIDTH), lstm_as_written, (ROWS, STEPS, WIDTH)),
    "GRU": (mbp.GRU(WIDTH), None, (ROWS, STEPS, WIDTH)),
}
found = {}
for name, (layer, as_written, sizes) in LOOPS.items():
    x = shape(*sizes)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    functions = (
        by_hand(layer),
        by_autodiff(forward_of(layer)),
        as_written and by_autodiff(as_written),
    )
    for way, function in zip(WAYS, functions, strict=True):
        if function:
            found[name, way] = (
                4 * sizes[0] * WIDTH,  # bytes of a state
                *loops(function, params, x),
                temporary(function, params, x),
            )

fig, axes = plt.subplots(1, 2, figsize=(12.8, 4.6), sharey=True)
SHORT = dict(zip(WAYS, ("by hand", "jax.grad", "jax.grad, as written"), strict=True))
labels = [f"{name}, {SHORT[way]}" for name, way in found]
for place, ((_, way), (unit, returned, carried, _)) in enumerate(found.items()):
    for axis, arrays in zip(axes, (returned, carried), strict=True):
        left = 0.0
        for array in sorted(arrays, key=lambda a: -a.size * a.dtype.itemsize):
            width = array.size * array.dtype.itemsize / unit
            axis.barh(place, width, 0.62, left=left, color=WAYS[way], edgecolor="white", lw=1)
            left += width
        axis.text(left + 0.3, place, f"{left:.3g}", va="center", fontsize=9.5)
axes[0].set_yticks(range(len(labels)), labels)
axes[0].invert_yaxis()
for axis, title in zip(
    axes, ("returned by each turn forward", "carried by each turn backward"), strict=True
):
    axis.set(
        title=title, xlabel="arrays of the size of the state", xlim=(0, axis.get_xlim()[1] * 1.06)
    )
fig.suptitle("Each box is an array")
plt.show()

print("compiled, forward and backward, in MiB:")
for name in LOOPS:
    ours, same = (found[name, way] for way in list(WAYS)[:2])
    told = ", ".join(
        f"{SHORT[way]} {found[name, way][3]:.1f}" for way in WAYS if (name, way) in found
    )
    print(f"{name:<16} {told}; by hand {ours[3] / same[3]:.2f} of jax.grad")
    sizes = [sum(a.size * a.dtype.itemsize for a in each[1]) for each in (ours, same)]
    assert sizes[0] < sizes[1] and ours[3] < same[3]

cell = mbp.LSTM(2)
small = jax.tree.map(np.float64, drawn(cell, shape(2, 3, 2)))
judged("LSTM", by_hand(cell), by_autodiff(lstm_as_written), small, rng.normal(size=(2, 3, 2)))
pile = mbp.stack(mbp.Dense(2, mbp.relu), 3)
small = jax.tree.map(np.float64, drawn(pile, shape(4, 2)))
judged("stack", by_hand(pile), by_autodiff(stack_as_written), small, rng.normal(size=(4, 2)))

# %% [markdown]
# To the right, the long boxes are $dU$ and, as one writes it, $dW$ as well: read and written in
# each of the turns. By hand the loops carry arrays of the size of the state: errors, and what a
# turn has from the one before, as in the stack a layer's output, which is a mask there and an input
# here. To the left, what is returned; thin boxes are masks. Some of autodiff's boxes are copies or
# zeros, and XLA drops those: the compiled figures below the picture say what remains.
#
# As people write them, both are closer to ours in memory. `jax.nn.relu` has a rule that was written
# by hand too. (A layer with more in it is in section 8.) And whoever takes products out of the
# loops needs their operands of all steps at once, $W x_t$ forward and $dz_t$ backward, $4n$ numbers
# each. With an LSTM, what is won is time.
#
# ## 5. Attention
#
# $$S = \tfrac{1}{\sqrt d} Q K^{\mathsf T}, \quad P = \operatorname{softmax}(S), \quad O = P V;
# \qquad dV = P^{\mathsf T} dO, \quad dP = dO\, V^{\mathsf T}, \quad dS = P \odot (dP - D).$$
#
# A general rule for softmax keeps $P$, or exponentials and their sum, and the rule for $PV$ keeps
# $P$: $T \times T$ numbers for each head, some of them several times. The formula has $P$ in it as
# well. But two numbers per query, the largest score $\mu$ and the sum of exponentials, bring back
# any part of it from $Q$ and $K$,
#
# $$P_{ts} = e^{S_{ts} - \mu_t} \Big/ \sum_{s'} e^{S_{ts'} - \mu_t}, \qquad
# D = \operatorname{rowsum}(dO \odot O),$$
#
# as notebook 4 derives. So the forward pass may go through the matrix part by part, and keep $O$
# and the two numbers. No part needs to be there longer than it is used. One may cut queries and
# keys, with sums that are rescaled (online softmax, as in FlashAttention), or queries alone, in
# strips of whole rows, as the library does. A strip of $b$ queries has $b\,T$ numbers, so that
# memory grows with $T$ and not with its square.
#
# It costs a product more: forward two, backward four, and $Q K^{\mathsf T}$ again, seven for six.
# But with a causal mask up to half of the matrix is never computed, so there is less memory *and*
# fewer flops. Below, programs are compiled and nothing is run. Their flops are those of the
# products in the jaxpr, each as often as its loop runs.


# %%
def product_flops(jaxpr):
    """Of all matrix products in a traced program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * int(np.prod([left[i] for i in contracted]))
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = [
            product_flops(getattr(each, "jaxpr", each))
            for param in equation.params.values()
            for each in (param if isinstance(param, tuple | list) else (param,))
            if hasattr(getattr(each, "jaxpr", each), "eqns")
        ]  # of a choice between programs one is run
        total += turns * (
            max(inner, default=0) if equation.primitive.name == "cond" else sum(inner)
        )
    return total


def attention_as_written(heads):
    """Causal attention between dense layers, with jax.nn's function."""

    def run(params, x):
        m, T, features = x.shape
        q, k, v = (
            (x @ W.T + b).reshape(m, T, heads, features // heads)
            for W, b in zip(params[:3], params[4:7], strict=True)
        )
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
        return out @ params.Wo.T + params.bo

    return run


in_blocks = mbp.MultiHeadAttention(4, causal=True, block=64)
ATTENTION = {
    "by hand, in blocks": (by_hand(in_blocks), BLUE, "o-"),
    "jax.grad of jax.nn's": (by_autodiff(attention_as_written(4)), GREY, "s--"),
}
LENGTHS = (512, 2048, 8192)
params = jax.eval_shape(in_blocks.init, jax.random.key(0), shape(1, 8, 256))
over_time = {
    name: [temporary(function, params, shape(1, T, 256)) for T in LENGTHS]
    for name, (function, _, _) in ATTENTION.items()
}
longest = shape(1, LENGTHS[-1], 256)
flops = [
    product_flops(jax.make_jaxpr(function)(params, longest).jaxpr)
    for function, _, _ in ATTENTION.values()
]
fig, axis = plt.subplots(figsize=(9, 4.6))
for name, (_, colour, line) in ATTENTION.items():
    axis.plot(LENGTHS, over_time[name], line, color=colour, label=name)
matrix = [4 * 4 * T * T / MEBIBYTE for T in LENGTHS]
axis.plot(LENGTHS, matrix, ":", color="black", label="one $T \\times T$ matrix for each head")
axis.set(xscale="log", yscale="log", xlabel="T", ylabel="temporary memory (MiB)")
axis.set_xticks(LENGTHS, map(str, LENGTHS))
axis.minorticks_off()
axis.set_title("Causal attention, width 256, 4 heads: forward and backward, compiled")
axis.legend(fontsize=9.5)
plt.show()
first, *_, last = (np.array(each) for each in zip(*over_time.values(), strict=True))
for name, amount, growth, each in zip(over_time, last, last / first, flops, strict=True):
    print(
        f"{name:<24} {amount:7.1f} MiB at T = {LENGTHS[-1]}, {growth:5.1f} times that of "
        f"T = {LENGTHS[0]}; {each / 1e9:.0f} Gflop"
    )
print(
    f"by hand {last[0] / last[1]:.3f} of jax.grad's memory, and {flops[0] / flops[1]:.2f} of its "
    "flops"
)
assert last[0] / first[0] < 2 * LENGTHS[-1] / LENGTHS[0] and last[0] < 0.1 * last[1:].min()

tiny, tiny_blocks = (mbp.MultiHeadAttention(2, causal=True, block=block) for block in (None, 2))
small = jax.tree.map(np.float64, drawn(tiny, shape(1, 5, 4)))
few = rng.normal(size=(1, 5, 4))
judged(
    "attention: blocks by hand, jax.grad of all at once",
    by_hand(tiny_blocks),
    by_autodiff(forward_of(tiny)),
    small,
    few,
    judge=judges.digits,
)

# %% [markdown]
# ## 6. Linear layer and cross-entropy
#
# A language model ends with $z = W h$ for a vocabulary of $V$ classes, $p = \operatorname{softmax}
# (z)$, and the loss $-\log p_k$. For $N$ predictions autodiff keeps $N \times V$ logits or
# probabilities from forward to backward, and makes as many errors. The formula is
#
# $$dz = \tfrac1N (p - y), \qquad dh = W^{\mathsf T} dz, \qquad dW = \sum dz\, h^{\mathsf T} .$$
#
# The error of a prediction needs its own logits, and *nothing else that comes later*: the loss
# is the last thing that is computed, so its backward pass can begin at once. So one loop goes over
# chunks of predictions, makes a chunk's logits, from them $p - y$, from that the chunk's share of
# $dh$ and $dW$, and forgets the logits. Each product is taken once, as in any other way.


# %%
def head_by_hand(classes, count):
    """dW and dh of the mean loss."""
    head = mbp.LinearCrossEntropy(classes)

    def run(W, h, y):
        weights = jnp.full(count, 1 / count, h.dtype)
        _, dparams, dh = head.sweep(HeadParams(W, ()), h, y, weights)
        return dparams.W, dh

    return run


def stock_head(W, h, y):
    """All logits, then optax's loss."""
    return optax.softmax_cross_entropy_with_integer_labels(h @ W.T, y).mean()


stock = jax.grad(stock_head, (0, 1))


def head_shapes(classes, count):
    """W, h and y."""
    return shape(classes, 256), shape(count, 256), shape(count, dtype=jnp.int32)


CLASSES, COUNTS = (1024, 4096, 16384, 65536), (256, 1024, 4096)
over_classes = [
    [temporary(way, *head_shapes(V, 1024)) for way in (head_by_hand(V, 1024), stock)]
    for V in CLASSES
]
over_counts = [
    [temporary(way, *head_shapes(16384, N)) for way in (head_by_hand(16384, N), stock)]
    for N in COUNTS
]
fig, axes = plt.subplots(1, 2, figsize=(12.5, 3.9), sharey=True)
for axis, over, found, one, name in (
    (axes[0], CLASSES, over_classes, 1024, "V, classes, for N = 1024"),
    (axes[1], COUNTS, over_counts, 16384, "N, predictions, for V = 16384"),
):
    ours, theirs = zip(*found, strict=True)
    axis.plot(over, ours, "o-", color=BLUE, label="by hand, in chunks")
    axis.plot(over, theirs, "s--", color=GREY, label="jax.grad of a product and optax's loss")
    logits = [4 * each * one / MEBIBYTE for each in over]
    axis.plot(over, logits, ":", color="black", label="one array of logits")
    axis.set(xscale="log", yscale="log", xlabel=name)
    axis.set_xticks(over, map(str, over))
    axis.minorticks_off()
axes[0].set(ylabel="temporary memory (MiB)")
axes[0].legend(fontsize=9.5)
fig.suptitle("Linear layer and cross-entropy, 256 features: forward and backward, compiled")
plt.show()
ours, theirs = over_classes[-1]
print(f"V = {CLASSES[-1]}: {ours:.1f} MiB by hand, {theirs:.1f} by jax.grad: {ours / theirs:.3f}")
assert ours < 0.1 * theirs
judged(
    "head",
    head_by_hand(5, 3),
    stock,
    rng.normal(size=(5, 2)),
    rng.normal(size=(3, 2)),
    np.array([0, 4, 2]),
)

# %% [markdown]
# Above some size the curve by hand is flat: a chunk is as many predictions as have logits of a
# given number of bytes. There is a price: $dW$ is read and written once for each chunk, as $dU$ was
# in each step of the LSTM. So chunks shouldn't be smaller than memory asks for.
#
# ## 7. Per-example norms
#
# For one example the gradient of a dense layer is an outer product, so its length is known without
# making it:
#
# $$g_i = e_i a_i^{\mathsf T}, \qquad \|g_i\|^2 = \|e_i\|^2\, \|a_i\|^2 .$$
#
# With several places $s$, as in a sequence or a convolution, it is a sum of outer products, and
#
# $$\Big\|\sum_s e_{is} a_{is}^{\mathsf T}\Big\|^2 = \sum_{s,s'} (e_{is} \cdot e_{is'})
# (a_{is} \cdot a_{is'}),$$
#
# two Gram matrices over places, which are small where there are fewer places than features.
# Autodiff has summed over examples before one can look. `vmap` of it makes $m$ gradients, $m$ times
# the parameters, to take their lengths. (Notebook 5 is about what the lengths are good for.)

# %%
wide_net = mbp.mlp((784, 512, 512, 10))
norms_by_hand = partial(mbp.per_example_norms, network=wide_net)


def norms_by_vmap(params, x, y, network=wide_net):
    """A gradient for each example, and its length."""

    def one(params, x, y):
        value = lambda params: loss.value(network.forward(params, x[None])[0], y[None])[0]  # noqa: E731
        return jax.grad(value)(params)

    each = jax.vmap(one, (None, 0, 0))(params, x, y)
    return jnp.sqrt(sum((leaf.reshape(len(x), -1) ** 2).sum(1) for leaf in jax.tree.leaves(each)))


def largest(function, *args):
    """The largest array in the traced program, in MiB."""
    avals = (
        out.aval for e in equations(jax.make_jaxpr(function)(*args).jaxpr) for out in e.outvars
    )
    return max(a.size * a.dtype.itemsize for a in avals if hasattr(a, "shape")) / MEBIBYTE


EXAMPLES = (16, 64, 256)
params = drawn(wide_net, shape(1, 784))
of_norms = {"by hand": norms_by_hand, "vmap of jax.grad": norms_by_vmap}
plain = partial(mbp.manual_grads, network=wide_net)
traced_sizes, norm_memory, norm_times = ({name: [] for name in of_norms} for _ in range(3))
plain_times = []
for m in EXAMPLES:
    args = params, normal(m, 784), jnp.array(rng.integers(0, 10, m))
    for name, function in of_norms.items():
        traced_sizes[name].append(largest(function, *args))
    programs = {name: compiled(way, *args) for name, way in of_norms.items()}
    for name, program in programs.items():
        norm_memory[name].append(program.memory_analysis().temp_size_in_bytes / MEBIBYTE)
    runs = {name: partial(program, *args) for name, program in programs.items()}
    took = medians(runs | {"one gradient": ready(plain, *args)}, rounds=3)
    plain_times.append(1e3 * took["one gradient"])
    for name in of_norms:
        norm_times[name].append(1e3 * took[name])

fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 3.9))
for name, colour in zip(of_norms, (BLUE, ORANGE), strict=True):
    left.plot(
        EXAMPLES, traced_sizes[name], "o-", color=colour, label=f"{name}: largest array, traced"
    )
    left.plot(EXAMPLES, norm_memory[name], "s--", color=colour, label=f"{name}: memory, compiled")
    right.plot(EXAMPLES, norm_times[name], "o-", color=colour, label=name)
right.plot(EXAMPLES, plain_times, "--", color=GREY, label="one gradient of the whole batch")
left.set(ylabel="MiB", title="memory")
right.set(ylabel="ms in this run", title="time")
for axis in (left, right):
    axis.set(xscale="log", yscale="log", xlabel="examples")
    axis.set_xticks(EXAMPLES, map(str, EXAMPLES))
    axis.minorticks_off()
    axis.legend(fontsize=9.5)
fig.suptitle("Norms of the gradients of each example, 784-512-512-10")
plt.show()
ours, theirs = (norm_times[name][-1] for name in of_norms)
print(
    f"{EXAMPLES[-1]} examples, in this run: {theirs / ours:.0f} times as fast by hand; the norms "
    f"took {ours / plain_times[-1]:.2f} of the time of one gradient"
)
assert traced_sizes["vmap of jax.grad"][-1] > 50 * traced_sizes["by hand"][-1]
narrow = mbp.mlp((3, 2, 2))
judged(
    "norms",
    partial(mbp.per_example_norms, network=narrow),
    partial(norms_by_vmap, network=narrow),
    jax.tree.map(np.float64, drawn(narrow, shape(1, 3))),
    rng.normal(size=(4, 3)),
    np.array([0, 1, 1, 0]),
    judge=judges.digits,
)

# %% [markdown]
# To the left is something to learn about XLA: the traced program names arrays of $m$ times the
# parameters, and the compiled one never has them. XLA makes each product, its square and the sum
# in one loop. So what is won is not memory but time: each of these numbers is computed and added
# all the same, as a plain loop, where the formula takes two sums of squares for each layer.
#
# ## 8. Depth
#
# $n$ layers keep $n$ times what a layer keeps. Two ways out, with one more forward pass each:
#
# - *checkpoint*: keep the input of each block alone, and compute the rest again when the error
#   arrives. In two levels, blocks of blocks, $2 \sqrt n$ inputs are there at a time, for two more
#   forward passes.
# - *reversible*: $y_1 = x_1 + f(x_2)$, $y_2 = x_2 + g(y_1)$ is undone by $x_2 = y_2 - g(y_1)$,
#   $x_1 = y_1 - f(x_2)$. So the inputs needn't be kept either: they come back from the output,
#   layer by layer. Depth costs nothing.
#
# The first is in JAX too, as `jax.checkpoint`. The second autodiff can't find: that a step can be
# undone is knowledge about the formula.

# %%
FEATURES, SAMPLES = 128, 4096
block = mbp.skip(mbp.sequential(mbp.LayerNorm(), mbp.Dense(FEATURES, mbp.gelu_tanh)))
half = mbp.sequential(mbp.LayerNorm(), mbp.Dense(FEATURES // 2, mbp.gelu_tanh))


def scanned(again, depth):
    """jax.grad of a scan over blocks, with jax.checkpoint or without."""
    del depth
    body = lambda x, params: (block.forward(params, x)[0], None)  # noqa: E731
    body = jax.checkpoint(body) if again else body
    return by_autodiff(lambda params, x: jax.lax.scan(body, x, params[0])[0])


def two_levels(depth):
    """A stack of checkpoints of stacks of checkpoints."""
    root = int(np.sqrt(depth))
    return mbp.stack(mbp.checkpoint(mbp.stack(mbp.checkpoint(block), root)), depth // root)


NETWORKS = {
    "jax.grad": (lambda n: mbp.stack(block, n), partial(scanned, False), GREY, "s--"),
    "stack": (lambda n: mbp.stack(block, n), None, BLUE, "o-"),
    "jax.grad of checkpoints": (
        lambda n: mbp.stack(block, n),
        partial(scanned, True),
        ORANGE,
        "s--",
    ),
    "stack of checkpoints": (lambda n: mbp.stack(mbp.checkpoint(block), n), None, GREEN, "o-"),
    "checkpoints in two levels": (two_levels, None, PURPLE, "o-"),
    "reversible": (lambda n: mbp.reversible(half, half, n), None, RED, "o-"),
}
DEPTHS = (4, 64)
over_depth = {}
x = shape(SAMPLES, FEATURES)
for name, (network_of, function_of, _, _) in NETWORKS.items():
    over_depth[name] = []
    for depth in DEPTHS:
        network = network_of(depth)
        function = function_of(depth) if function_of else by_hand(network)
        params = jax.eval_shape(network.init, jax.random.key(0), x)
        over_depth[name].append(temporary(function, params, x))

fig, axis = plt.subplots(figsize=(9.5, 4.8))
for name, (_, _, colour, line) in NETWORKS.items():
    axis.plot(DEPTHS, over_depth[name], line, color=colour, label=name)
inputs = [4 * SAMPLES * FEATURES * depth / MEBIBYTE for depth in DEPTHS]
axis.plot(DEPTHS, inputs, ":", color="black", label="the input of each block")
axis.set(xscale="log", yscale="log", xlabel="blocks", ylabel="temporary memory (MiB)")
axis.set_xticks(DEPTHS, map(str, DEPTHS))
axis.minorticks_off()
axis.set_title(
    f"x + GELU(W LayerNorm(x) + b), {SAMPLES} × {FEATURES}: forward and backward, compiled"
)
axis.legend(fontsize=9.5, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
for name, (*_, last) in over_depth.items():
    print(
        f"{name:<26} {last:7.1f} MiB at {DEPTHS[-1]} blocks: "
        f"{last / over_depth['jax.grad'][-1]:.3f} of jax.grad's"
    )
assert over_depth["reversible"][-1] < 1.01 * over_depth["reversible"][0]
assert over_depth["stack"][-1] < 0.6 * over_depth["jax.grad"][-1]

# %% [markdown]
# Reversible is flat. (Its blocks are another network: two halves, each of half the width. And the
# inputs had back are the forward pass's up to rounding, see `manual_bp.combinators.reversible`.)
# With checkpoints both ways keep the inputs, and there is little between them. Without, the stack
# keeps what this formula needs, and autodiff what its rules need.

# %% [markdown]
# ## 9. Where nothing is won, and how to measure fairly
#
# **XLA computes cheap things again by itself.** Section 1 counted what autodiff keeps of GELU. In a
# network of dense layers, written one after the other and compiled as a whole, XLA sees that most
# of this is element-wise of $Z$, stores less and computes the rest again. The same layers in a scan
# are two programs with memory between them, and there it can't.

# %%
x = shape(512, 512)
compare, as_traced = {}, {}
for g in (mbp.gelu_tanh, mbp.relu):
    dense = mbp.Dense(512, g)
    deep = mbp.sequential(*[dense] * 8)
    for name, network in (("one after the other", deep), ("in a scan", mbp.stack(dense, 8))):
        params = jax.eval_shape(network.init, jax.random.key(0), x)
        ways = by_hand(network), by_autodiff(forward_of(network))
        compare[g, name] = [temporary(function, params, x) for function in ways]
    params = jax.eval_shape(deep.init, jax.random.key(0), x)
    of_deep = partial(stored, forward_of(deep))
    leaves = jax.tree.leaves(jax.eval_shape(of_deep, params, x))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    total -= sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    as_traced[g] = total / MEBIBYTE

fig, axes = plt.subplots(1, 2, figsize=(12.5, 2.9), sharey=True)
for axis, (g, traced_size) in zip(axes, as_traced.items(), strict=True):
    bars = {"what jax.vjp keeps, traced": (traced_size, GREY)}
    for (activation, name), found in compare.items():
        if activation == g:
            for way, value, colour in zip(
                ("by hand", "jax.grad"), found, (BLUE, ORANGE), strict=True
            ):
                bars[f"{name}, {way}"] = (value, colour)
    values, colours = zip(*bars.values(), strict=True)
    drawn_bars = axis.barh(list(bars), values, 0.62, color=colours)
    axis.bar_label(drawn_bars, [f"{value:.1f}" for value in values], padding=3)
    axis.set(xlabel="MiB", title=f"{g}")
axes[0].invert_yaxis()
fig.suptitle("8 dense layers, 512 × 512; compiled, but for the first bar")
plt.show()
for (g, name), (ours, theirs) in compare.items():
    print(f"{g!s:<10} {name:<20} by hand over jax.grad: {ours / theirs:.2f}")

# %% [markdown]
# So what tracing promises isn't what a compiled program gains. In one program XLA may find by
# itself what a derivation found, or half of it, and then there is that much less to win; memory and
# time must be measured in what runs. In general:
#
# - *Products are as fast as the library that makes them.* XLA's and PyTorch's are different ones,
#   each faster at some shapes. Where PyTorch has the better one for a shape, no formula helps.
# - *Element-wise functions* outside of loops are fused by XLA whoever wrote them.
# - *Recomputing isn't free* where a function is expensive. To keep $z$ and compute $g'(z)$ again
#   may take longer than to read it, when nothing waits for memory.
# - *Memory and time are two columns*: attention in blocks and checkpoints pay for one with the
#   other, unless blocks can be left out.
#
# **How to measure.** Five mistakes, each of them made here.

# %%
W, x_few = normal(512, 512), normal(256, 512)
d_few = normal(256, 512)

# 1. A loop's body is counted once.
one_turn = 2.0 * x_few.size * 512
for turns in (1, 8, 64):
    program = compiled(
        lambda W, x, n=turns: jax.lax.scan(lambda x, _: (x @ W, None), x, length=n)[0], W, x_few
    )
    said = program.cost_analysis()["flops"]
    print(f"1. {turns:>2} turns: cost_analysis {said:.3g} flops, true {turns * one_turn:.3g}")

# 2. What nobody reads isn't computed.
pair = lambda W, x, dout: (dout.T @ x, dout @ W)  # noqa: E731
for name, function in (("dW and dx", pair), ("dW alone", lambda *args: pair(*args)[0])):
    said = compiled(function, W, x_few, d_few).cost_analysis()["flops"]
    print(f"2. {name}: {said:.3g} flops")

# 3. The first call compiles. 4. A call returns before it is done.
step = jax.jit(lambda W, x, dout: pair(W, x, dout))
clock = {}
for name, wait in (("first call", True), ("second call", True), ("not waited for", False)):
    started = perf_counter()
    out = step(W, x_few, d_few)
    if wait:
        jax.block_until_ready(out)
    clock[name] = 1e3 * (perf_counter() - started)
    jax.block_until_ready(out)
print("3, 4.", ", ".join(f"{name} {ms:.2f} ms" for name, ms in clock.items()))

# 5. One measurement is none: the same program, many times.
run = ready(pair, W, x_few, d_few)
times = []
for _ in range(60):
    started = perf_counter()
    jax.block_until_ready(run())
    times.append(1e3 * (perf_counter() - started))
low, middle, high = np.percentile(times, (5, 50, 95))
print(f"5. the same program 60 times: median {middle:.2f} ms, nine in ten {low:.2f} to {high:.2f}")

# %% [markdown]
# 1. XLA's `cost_analysis` doesn't multiply by the turns of a loop. The benchmarks count products in
#    the jaxpr instead, each as often as it runs.
# 2. A benchmark that throws away $dx$ measures half of the work, if the other way doesn't. All ways
#    must return the same gradients. The same goes for constants: an error of ones lets XLA drop
#    products with it. Here the error is the output, of which nothing is constant.
# 3. Compile first, by `lower` and `compile`, and measure that by itself.
# 4. `block_until_ready`, on everything.
# 5. Medians of many, and ways *in turn*: one round of ours, one of theirs, in changing order, each
#    after a run that isn't measured. A machine that gets slower for a second then does so to both.
#    And ratios, never absolute times, where something is to be held against yesterday.
#
# ## 10. Exercises
#
# Fill in what is `None` and run the cell. As committed, nothing is filled in. Arguments are chosen
# such that right answers are exact: the checker, `checker.py` beside this notebook, asks for
# equality. Solutions follow at the end.


# %%
def integers(*sizes):
    """Small integers as floats: sums and products of some of them are exact."""
    return jnp.array(rng.integers(-3, 4, size=sizes), jnp.float32)


# %% [markdown]
# **Exercise 1.** Backward passes that need nothing but the output $a$: of tanh, of sigmoid and of
# softmax over the last axis. (The $a$ given here are integers, so they aren't outputs of these
# functions; the formulas are polynomials, and hold or fail all the same.) For which of relu, silu
# and GELU is there such a formula?


# %%
def my_backward_of_output(a, da):
    """dz of each, from a and da, both (m, n)."""
    of_tanh = None
    of_sigmoid = None
    of_softmax = None
    return {"of_tanh": of_tanh, "of_sigmoid": of_sigmoid, "of_softmax": of_softmax}


a_1, da_1 = integers(4, 3), integers(4, 3)
jacobians = jax.vmap(lambda a: jnp.diag(a) - jnp.outer(a, a))(a_1)
right_1 = {
    "of_tanh": da_1 - da_1 * a_1 * a_1,
    "of_sigmoid": da_1 * a_1 - da_1 * a_1 * a_1,
    "of_softmax": jnp.einsum("mij,mi->mj", jacobians, da_1),
}
exercise_1 = ((a_1, da_1), right_1)
solved_1 = check_answer(my_backward_of_output, *exercise_1)

# %% [markdown]
# **Exercise 2.** LayerNorm's backward pass *from its output*: $\text{out} = \gamma \odot \hat x +
# \beta$ and $r$, one number for each row, but not $x$. This is what one wants where out is kept
# anyway, by the layer that reads it. ($\gamma$ has no zeros. What if it had?)


# %%
def my_layer_norm_backward(gamma, beta, r, out, dout):
    """dgamma and dbeta (C), dx (m, C); r is (m, 1), out and dout are (m, C)."""
    dgamma = None
    dbeta = None
    dx = None
    return {"dgamma": dgamma, "dbeta": dbeta, "dx": dx}


def layer_norm(gamma, beta, x):
    """The judge's own, with ε = 0."""
    centred = x - x.mean(-1, keepdims=True)
    return gamma * (centred / jnp.sqrt((centred**2).mean(-1, keepdims=True))) + beta


signs = jnp.array([[1, 1, -1, -1], [1, -1, 1, -1], [-1, 1, 1, -1]], jnp.float32)
std = jnp.array([[2], [4], [8]], jnp.float32)
gamma_2, beta_2 = jnp.array([1, 2, -1, 4], jnp.float32), integers(4)
x_2, dout_2 = 3 + std * signs, integers(3, 4)  # powers of two everywhere, so all is exact
out_2, pull_2 = jax.vjp(layer_norm, gamma_2, beta_2, x_2)
right_2 = dict(zip(("dgamma", "dbeta", "dx"), pull_2(dout_2), strict=True))
exercise_2 = ((gamma_2, beta_2, 1 / std, out_2, dout_2), right_2)
solved_2 = check_answer(my_layer_norm_backward, *exercise_2)

# %% [markdown]
# **Exercise 3.** A mask of bits. `my_mask` gets $z$, $(m, n)$, and returns what relu's backward
# pass needs in as few bytes as it takes; `my_masked` makes $dz$ of that and $da$. Rows have $n =
# 13$ entries here, and start a new byte each. How many bytes is that, and how many are a boolean
# array and float32? (`jnp.packbits`.)


# %%
def my_mask(z):
    """What backward needs, an array of uint8."""
    return None


def my_masked(kept, da):
    """dz, from that and da, (m, n)."""
    return None


def mask_of_bits(mask, masked):
    """The two together: dz, and the bytes of what was kept."""

    def run(z, da):
        kept = mask(z)
        if kept is None:
            return {}
        return {"bytes": np.asarray(kept).nbytes, "dz": masked(kept, da)}

    return run


z_3, da_3 = integers(6, 13), integers(6, 13)
exercise_3 = ((z_3, da_3), {"bytes": 6 * 2, "dz": jnp.where(z_3 > 0, da_3, 0)})
solved_3 = check_answer(mask_of_bits(my_mask, my_masked), *exercise_3)

# %% [markdown]
# **Exercise 4.** $\|\sum_s e_{is} a_{is}^{\mathsf T}\|^2$ of each example, for $e$ $(m, S, n_o)$
# and $a$ $(m, S, n_i)$, *without the gradients*: no array that you make may have more than $m S^2$
# numbers. The checker looks at the program.


# %%
def my_squared_norms(e, a):
    """(m,)"""
    return None


def with_sizes(function):
    """The norms; an error if an array made on the way is too large."""

    def run(e, a):
        norms = function(e, a)
        if norms is None:
            return {}
        made = equations(jax.make_jaxpr(function)(e, a).jaxpr)
        most, allowed = (
            max(v.aval.size for each in made for v in each.outvars),
            len(e) * len(e[0]) ** 2,
        )
        if most > allowed:
            raise ValueError(f"it makes an array of {most} numbers, and {allowed} are allowed")
        return {"norms": norms}

    return run


e_4, a_4 = integers(5, 3, 7), integers(5, 3, 8)
grads_4 = jnp.einsum("mso,msi->moi", e_4, a_4)
exercise_4 = ((e_4, a_4), {"norms": (grads_4**2).sum((1, 2))})
solved_4 = check_answer(with_sizes(my_squared_norms), *exercise_4)


# %% [markdown]
# This is what the checker says of some wrong answers: softmax's Jacobian taken for a diagonal, the
# statistics of LayerNorm taken for constants, a mask of bytes, and the gradients made after all.


# %%
def diagonal(a, da):
    """As if classes didn't share a sum."""
    return {**right_1, "of_softmax": a * (1 - a) * da}


def constants(gamma, beta, r, out, dout):
    """As if mean and r didn't depend on x."""
    return {**right_2, "dx": r * gamma * dout}


of_bytes = mask_of_bits(lambda z: (z > 0).astype(jnp.uint8), lambda kept, da: kept * da)


def grads_first(e, a):
    """The right norms, from the gradients."""
    return (jnp.einsum("mso,msi->moi", e, a) ** 2).sum((1, 2))


for wrong, exercise in (
    (diagonal, exercise_1),
    (constants, exercise_2),
    (of_bytes, exercise_3),
    (with_sizes(grads_first), exercise_4),
):
    assert not check_answer(wrong, *exercise)

# %% [markdown]
# **Solutions.**


# %%
def backward_of_output_solution(a, da):
    """Exercise 1."""
    return {
        "of_tanh": da * (1 - a**2),
        "of_sigmoid": da * a * (1 - a),
        "of_softmax": a * (da - (da * a).sum(-1, keepdims=True)),
    }


def layer_norm_backward_solution(gamma, beta, r, out, dout):
    """Exercise 2: γ and β are undone; where γ is 0, x̂ can't be had back."""
    normalized = (out - beta) / gamma
    g = gamma * dout
    along = normalized * (g * normalized).mean(-1, keepdims=True)
    return {
        "dgamma": (dout * normalized).sum(0),
        "dbeta": dout.sum(0),
        "dx": r * (g - g.mean(-1, keepdims=True) - along),
    }


def mask_solution(z):
    """Exercise 3: eight to a byte, 2 bytes for a row of 13, instead of 13 and 52."""
    return jnp.packbits(z > 0, axis=-1)


def masked_solution(kept, da):
    """Exercise 3: the other way, without the zeros that filled the last byte."""
    return jnp.unpackbits(kept, axis=-1, count=da.shape[-1]) * da


def squared_norms_solution(e, a):
    """Exercise 4: two Gram matrices over places."""
    of_errors = jnp.einsum("mso,mto->mst", e, e)
    of_inputs = jnp.einsum("msi,mti->mst", a, a)
    return (of_errors * of_inputs).sum((1, 2))


assert check_answer(backward_of_output_solution, *exercise_1)
assert check_answer(layer_norm_backward_solution, *exercise_2)
assert check_answer(mask_of_bits(mask_solution, masked_solution), *exercise_3)
assert check_answer(with_sizes(squared_norms_solution), *exercise_4)

# What a mask of bits costs in time, beside one of bytes: two programs with the mask between them.
z_wide, da_wide = normal(2048, 1024), normal(2048, 1024)
bits = jax.jit(mask_solution), jax.jit(masked_solution)
bytes_ = jax.jit(lambda z: z > 0), jax.jit(lambda kept, da: jnp.where(kept, da, 0))
runs = {
    name: lambda mask=mask, masked=masked: masked(mask(z_wide), da_wide)
    for name, (mask, masked) in (("bits", bits), ("bytes", bytes_))
}
took = medians(runs)
print(f"in this run a mask of bits took {took['bits'] / took['bytes']:.1f} times as long as bytes")

# %% [markdown]
# The question in exercise 1: for relu there is one, $dz = da \odot [a > 0]$. Silu and GELU fall
# before they rise, so two $z$ have the same output and different slopes. Here is such a pair:

# %%
falling, right_z = jnp.linspace(-9, -1.5, 4000), jnp.float32(-0.5)
left_z = jnp.interp(mbp.silu.value(right_z), mbp.silu.value(falling)[::-1], falling[::-1])
for z in (left_z, right_z):
    a, slope = mbp.silu.value(z), mbp.silu.derivative(z)
    print(f"z = {z:6.3f}: silu {a:.4f}, slope {slope:+.4f}")

# %% [markdown]
# ## What to take home
#
# - *A rule per operation keeps what each operation needs; a derivation keeps what is left of them.*
#   Softmax needs its output, LayerNorm two numbers for each row.
# - *Memory is time*, left of the roof's edge, where most of what isn't a matrix product lies.
# - *A scan keeps what its body returns, and reads and writes what it carries.* Return little; add
#   outer products after the loop.
# - *What can be computed again from little, needn't be kept*: $P$ from $\mu$ and a sum, an input
#   from the output of a reversible step.
# - *The loss can begin with its backward pass.*
# - *A length needs no vector.*
# - *Where a formula spares neither bytes nor flops, it is as fast as autodiff*, and its program is
#   there sooner. XLA finds by itself what lies within one loop.
#
# The table is `python -m benchmarks`; `BENCHMARKS.md` has it as last measured, with the rows that
# fall short.
#
# ## Sources
#
# - A. Griewank, A. Walther, *Evaluating derivatives* (2nd edition, 2008); *Algorithm 799: revolve*
#   (2000): what reverse mode keeps, and checkpoints.
# - R. Frostig, M. Johnson, D. Maclaurin, A. Paszke, A. Radul, *Decomposing reverse-mode automatic
#   differentiation* (2021), arXiv:2105.09469: linearise, take apart, transpose: JAX's way.
# - S. Williams, A. Waterman, D. Patterson, *Roofline: an insightful visual performance model for
#   multicore architectures*, Communications of the ACM 52 (2009).
# - T. Dao, D. Fu, S. Ermon, A. Rudra, C. Ré, *FlashAttention* (2022), arXiv:2205.14135; M. Milakov,
#   N. Gimelshein, *Online normalizer calculation for softmax* (2018), arXiv:1805.02867.
# - P.-L. Hsu et al., *Liger kernel: efficient Triton kernels for LLM training* (2024),
#   arXiv:2410.10989; E. Wijmans et al., *Cut your losses in large-vocabulary language models*
#   (2024), arXiv:2411.09009: cross-entropy without logits.
# - I. Goodfellow, *Efficient per-example gradient computations* (2015), arXiv:1510.01799; G.
#   Rochette, A. Manoel, E. Tramel (2019), arXiv:1912.06015: with several places.
# - T. Chen, B. Xu, C. Zhang, C. Guestrin, *Training deep nets with sublinear memory cost* (2016),
#   arXiv:1604.06174: checkpoints.
# - A. Gomez, M. Ren, R. Urtasun, R. Grosse, *The reversible residual network* (2017),
#   arXiv:1707.04585.
