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
# # Inside other people's JAX, and on more than one device
#
# A backward pass written by hand is of use beyond its own library in two ways. `jax.grad` can be
# told to use it, so that it works in anybody's flax or equinox model. And as it is JAX itself, it
# runs on many devices, where its formulas say what devices must tell each other. This notebook
# goes both ways, and measures memory and collectives. Its eight devices are virtual, parts of one
# CPU. All outputs are kept, so the notebook can be read without running anything.
#
# *Our rules inside other people's JAX*
#
# 1. A layer as a function: what `jax.custom_vjp` makes of it, and what is kept
# 2. One import changed: a flax GPT block, an equinox MLP
# 3. Where JAX may put them: `vmap`, `scan`, `checkpoint`, `hessian`, and forward mode
#
# *Our gradients on many devices*
#
# 4. Eight devices, three placements, two kinds of mesh
# 5. Which collective is which term of the formula
# 6. Counted in the compiled program, beside `jax.grad`
# 7. `shard_map`: the local gradient, and a trap of $\times 8$
# 8. A rule of your own: two types that a cotangent must have
# 9. Training on one device, on eight, in two processes
# 10. Exercises, with a checker; solutions

# %%
import jax

# Both must be said before JAX starts its devices, which the first array does.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_pprint_use_color", False)  # jaxprs in black

import json
from functools import partial
from pathlib import Path

import equinox as eqx
import flax.nnx
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib.patches import Rectangle

import manual_bp as mbp
import manual_bp.interop.equinox
import manual_bp.interop.flax
from manual_bp.interop import as_function, as_loss, elementwise, functions
from manual_bp.layers.dense import Params as DenseParams
from manual_bp.sharding import placed_like
from verify import judges
from verify.scale import meshes
from verify.scale.collectives import collectives, total
from verify.scale.comparison import LAYOUTS, Case

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


def judged(name, verdict, right=True):
    """Print a judge's verdict, and fail unless it is the expected one."""
    said = "the same" if verdict.ok else f"not the same: {verdict.first_wrong}"
    print(f"{name:<58} {said}")
    assert verdict.ok == right, name


def equal(name, ours, theirs):
    """Print whether two trees of arrays are equal, entry by entry, and fail unless they are."""
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    assert all(a.shape == b.shape and (np.asarray(a) == np.asarray(b)).all() for a, b in pairs)
    assert all(np.any(b) for _, b in pairs), f"{name}: zeros are equal for no reason"
    print(f"{name:<58} equal: {sum(b.size for _, b in pairs)} entries")


def bars(axis, names, ours, theirs, form="{:.1f}", labels=("by hand", "stock")):
    """Two bars for each name, with their numbers."""
    y = np.arange(len(names))
    for values, shift, colour, label in (
        (theirs, -0.2, ORANGE, labels[1]),
        (ours, 0.2, BLUE, labels[0]),
    ):
        drawn = axis.barh(y + shift, values, 0.38, color=colour, label=label)
        axis.bar_label(drawn, [form.format(each) for each in values], padding=3, fontsize=9.5)
    axis.set_yticks(y, names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.14 * max(*ours, *theirs))


def shape(*sizes, dtype=jnp.float32):
    """A shape in an array's place: enough to trace and compile a program."""
    return jax.ShapeDtypeStruct(sizes, dtype)


rng = np.random.default_rng(0)
print(f"JAX {jax.__version__}: {len(jax.devices())} {jax.devices()[0].platform} devices")

# %% [markdown]
# ## 1. A layer as a function
#
# A layer of the library is a pair of programs: `forward(params, x)` gives the output and the
# residuals, `backward(params, residuals, dout)` the gradients. `as_function` hands the pair to
# `jax.custom_vjp`. What comes out is a plain function `f(params, x)`, and `jax.grad` of any program
# that calls it runs our backward pass in place of its own.

# %%
layer = mbp.Dense(2, mbp.relu)
f = as_function(layer)
x = jnp.array(rng.normal(size=(4, 3)), jnp.float32)
params = layer.init(jax.random.key(0), x)

print(jax.make_jaxpr(f)(params, x))

# %% [markdown]
# To JAX the layer is one operation, `custom_vjp_call`, with the forward program inside and a
# backward program beside it. `jax.vjp` runs the forward program, and returns the backward one as a
# function of the error that has all it needs with it. Its jaxpr shows both. The arrays to the left
# of the last argument are what is kept:


# %%
def plain(params, x):
    """The same layer, left to autodiff."""
    return jax.nn.relu(x @ params.W.T + params.b)


def backward_program(function, *args):
    """The jaxpr of a function's backward pass: of what was kept, and the error."""
    out, pull = jax.vjp(function, *args)
    return jax.make_jaxpr(lambda pull, dout: pull(dout))(pull, out)


print("By hand:", backward_program(f, params, x))
print("\nBy autodiff:", backward_program(plain, params, x))

# %% [markdown]
# Ours is the page of the notes, line by line: $dZ = dA \odot g'(Z)$, where $g'$ is 0 or 1;
# $dW = dZ^{\mathsf T} X$, $db = \sum dZ$, $dX = dZ\,W$. It is a program of $W$, $X$ and a mask of
# one byte for each unit. ($b$ is there too, unread, and costs nothing: it is the parameter itself.)
# Autodiff keeps the same here, and zeros that nothing reads. It arrives at the same products, with
# some transposes around them.
#
# For one dense layer there is little to gain. It is different where a formula is made of many
# operations. Each operation keeps what its own derivative needs, and doesn't know that the next
# one keeps the same in other words. Below, the sizes of all that `jax.vjp` keeps, of ours and of
# the same functions as JAX or optax have them.


# %%
def layer_norm_of_jnp(x, scale, shift):
    """As one writes it."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def kept(function, *args):
    """Bytes of what the backward pass needs, by tracing alone."""
    pull = jax.eval_shape(lambda *args: jax.vjp(function, *args)[1], *args)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull))


z, channels = shape(1024, 512), shape(512)
q = shape(1, 1024, 8, 64)
labels = jnp.zeros(1024, jnp.int32)
stock_loss = optax.softmax_cross_entropy_with_integer_labels
CASES = {
    "relu": (functions.relu, jax.nn.relu, z),
    "gelu (tanh)": (functions.gelu_tanh, jax.nn.gelu, z),
    "silu": (functions.silu, jax.nn.silu, z),
    "layer norm": (functions.layer_norm, layer_norm_of_jnp, z, channels, channels),
    "softmax cross-entropy": (
        lambda z: functions.softmax_cross_entropy(z, labels),
        lambda z: stock_loss(z, labels),
        z,
    ),
    "attention, 1024 steps": (
        partial(functions.attention, causal=True, block=128),
        partial(jax.nn.dot_product_attention, is_causal=True),
        q,
        q,
        q,
    ),
}
units = z.size * z.dtype.itemsize
ours, theirs = (
    np.array([kept(case[which], *case[2:]) / units for case in CASES.values()]) for which in (0, 1)
)
fig, (left, right) = plt.subplots(1, 2, figsize=(12.5, 3.6), width_ratios=(1.5, 1))
bars(left, list(CASES)[:-1], ours[:-1], theirs[:-1], "{:.2f}", ("by hand", "JAX's own"))
bars(right, ["attention,\n1024 steps"], ours[-1:], theirs[-1:])
left.set(xlabel="arrays of the input's size (2 MiB)", title="element-wise, norm and loss")
right.set(xlabel="arrays of the size of Q (2 MiB)", title="8 heads of 64, causal")
left.legend(loc="lower right")
fig.suptitle("What the forward pass keeps for the backward pass, before the compiler")
plt.show()

# %% [markdown]
# Relu keeps a mask of one byte. (The whole array beside it holds zeros, which the compiler needs
# not store, and JAX's own relu has it too.) The smooth activations keep one array, $g'(Z)$; softmax
# cross-entropy the logits, as optax's does; layer norm the normalised $\hat x$ and one number for
# each row; attention $Q, K, V$, the output, and two numbers for each query. Its backward pass makes
# the softmax again, block by block, and the matrix of $T \times T$ weights is never there (notebook
# 4 derives it).
#
# This is what tracing says, before XLA sees the program. Under `jit` XLA may fuse operations and
# drop copies, so what is saved in the end must be measured in compiled programs.
#
# ## 2. One import changed
#
# Most models are written with somebody's modules. `manual_bp.interop.flax` has flax.nnx's names,
# `manual_bp.interop.equinox` equinox's: same constructors, same parameters, same state. A GPT block
# as one writes it in flax takes either, here as the argument `nn`. In a file one changes the first
# of these lines to the second:
#
# ```python
# from flax.nnx import LayerNorm, Linear, MultiHeadAttention, gelu
# from manual_bp.interop.flax import LayerNorm, Linear, MultiHeadAttention, gelu
# ```


# %%
class Block(flax.nnx.Module):
    """A pre-norm GPT block: nothing in it knows whose modules these are."""

    def __init__(self, nn, width, heads, rngs):
        self.norm1, self.norm2 = nn.LayerNorm(width, rngs=rngs), nn.LayerNorm(width, rngs=rngs)
        self.attention = nn.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up = nn.Linear(width, 4 * width, rngs=rngs)
        self.down = nn.Linear(4 * width, width, rngs=rngs)
        self.gelu = nn.gelu

    def __call__(self, x):
        x = x + self.attention(self.norm1(x), is_causal=True)
        return x + self.down(self.gelu(self.up(self.norm2(x))))


def flax_gradient(nn, width, heads, kind=Block):
    """The gradient of a scalar of the block, of its state and x; and the shapes of the state."""
    model = flax.nnx.eval_shape(lambda: kind(nn, width, heads, flax.nnx.Rngs(0)))
    graph, state = flax.nnx.split(model)

    def loss(state, x):
        return jnp.square(flax.nnx.merge(graph, state)(x)).mean()

    return jax.value_and_grad(loss), state


stock_gradient, state = flax_gradient(flax.nnx, 8, 2)
our_gradient, same_state = flax_gradient(manual_bp.interop.flax, 8, 2)
assert jax.tree.structure(state) == jax.tree.structure(same_state)


def drawn(shapes):
    """Arrays of these shapes: biases of 0 and scales of 1 would hide mistakes."""
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)


state, few = drawn(state), rng.normal(size=(2, 5, 8))
judged(
    "flax GPT block, all gradients: one import changed",
    judges.same(our_gradient, stock_gradient, state, few),
)

# %% [markdown]
# One state serves both, so that a checkpoint of the one is a checkpoint of the other. *The same* is
# said by the judge `bounds`: it runs both programs in doubles with a bound on the rounding of every
# operation, and nobody chose a tolerance. It can say no: here is a block whose second norm was
# forgotten.


# %%
class Forgetful(Block):
    """The mistake."""

    def __call__(self, x):
        x = x + self.attention(self.norm1(x), is_causal=True)
        return x + self.down(self.gelu(self.up(x)))


forgetful_gradient, _ = flax_gradient(manual_bp.interop.flax, 8, 2, kind=Forgetful)
judged("a norm forgotten", judges.same(forgetful_gradient, stock_gradient, state, few), right=False)

# %% [markdown]
# **equinox** models are pytrees, and their modules are of one example; `jax.vmap` does the rest.
# The lines to exchange are
#
# ```python
# from equinox.nn import MLP
# from manual_bp.interop.equinox import MLP
# ```


# %%
def equinox_gradient(nn, width):
    """The same for an MLP with two hidden layers."""
    make = partial(nn.MLP, width, width, 4 * width, 2, activation=jax.nn.gelu)
    model = eqx.filter_eval_shape(make, key=jax.random.key(0))
    arrays, rest = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    leaves, structure = jax.tree.flatten(arrays)

    def loss(leaves, x):
        model = eqx.combine(jax.tree.unflatten(structure, leaves), rest)
        return jnp.square(jax.vmap(model)(x)).mean()

    return jax.value_and_grad(loss), leaves


stock_mlp, leaves = equinox_gradient(eqx.nn, 3)
our_mlp, _ = equinox_gradient(manual_bp.interop.equinox, 3)
judged(
    "equinox MLP, all gradients: one import changed",
    judges.same(our_mlp, stock_mlp, drawn(leaves), rng.normal(size=(4, 3))),
)

# %% [markdown]
# **Weights go over, too.** `from_module` makes a layer of the library of a module, and `to_module`
# the way back. So whatever the library reads off a backward pass, it reads off a model that was
# made elsewhere: here the norm of each example's gradient (notebook 5 has more).

# %%
theirs = eqx.nn.MLP(4, 2, 8, 2, activation=jax.nn.gelu, key=jax.random.key(0))
here, here_params, _ = manual_bp.interop.equinox.from_module(theirs)
again = manual_bp.interop.equinox.to_module(here, here_params)
few_x, few_y = jnp.array(rng.normal(size=(3, 4)), jnp.float32), jnp.array([0, 1, 1])
print(here)
print("‖g_i‖ of three examples:", mbp.per_example_norms(here_params, few_x, few_y, network=here))
equal(
    "equinox, manual_bp, equinox again: the weights",
    *(eqx.filter(model, eqx.is_array) for model in (again, theirs)),
)

# %% [markdown]
# **A head with many classes** is where memory goes in a language model. With
# $V = 32768$ classes the logits of 1024 predictions are 128 MiB, and the stock model holds them
# and their gradient. `linear_cross_entropy` takes the features and the head's weights. It goes
# through the predictions in chunks, makes a chunk's logits, and from $dZ = A - Y$ at once the
# gradients of features and weights; then it forgets the logits. So the forward pass has done all,
# and the backward pass multiplies by one number.


# %%
def stock_head(h, W, labels):
    """Logits, then optax's loss: W (F, V) as flax's kernels are."""
    return stock_loss(h @ W, labels).mean()


def our_head(h, W, labels):
    """No logits."""
    return functions.linear_cross_entropy(h, W, labels, class_axis=1)


heads = [jax.value_and_grad(head, (0, 1)) for head in (our_head, stock_head)]
arguments = rng.normal(size=(6, 3)), rng.normal(size=(3, 10)), rng.integers(0, 10, 6)
judged("cross-entropy head", judges.same(*heads, *arguments))


def temporary(function, *args):
    """What the compiled program needs beside arguments and results, in MiB."""
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes / MEBIBYTE


head_args = shape(1024, 256), shape(256, 32768), shape(1024, dtype=jnp.int32)
memory = {"head, V = 32768": [temporary(head, *head_args) for head in heads]}
for nn in (manual_bp.interop.flax, flax.nnx):
    gradient, state = flax_gradient(nn, 256, 4)
    for T in (1024, 2048):
        found = memory.setdefault(f"flax GPT block, T = {T}", [])
        found.append(temporary(gradient, state, shape(1, T, 256)))
for nn in (manual_bp.interop.equinox, eqx.nn):
    gradient, leaves = equinox_gradient(nn, 256)
    found = memory.setdefault("equinox MLP, 4096 rows", [])
    found.append(temporary(gradient, leaves, shape(4096, 256)))

fig, axis = plt.subplots(figsize=(10, 4.2))
ours, theirs = zip(*memory.values(), strict=True)
bars(axis, list(memory), ours, theirs)
axis.set(xlabel="temporary memory (MiB)", title="forward and backward, compiled")
axis.legend(loc="lower right")
fig.suptitle("The same models with one import changed")
plt.show()
for name, (mine, stock) in memory.items():
    print(f"{name:<26} {mine:6.1f} of {stock:6.1f} MiB: {mine / stock:5.1%}")
assert ours[0] <= 0.1 * theirs[0] and ours[2] < 0.25 * theirs[2]

# %% [markdown]
# The head needs less than a tenth. A block over a long sequence loses its $T \times T$ matrices:
# twice the length takes about twice the memory, where the stock block takes almost four times as
# much. A plain MLP gains nothing, and here loses a little: what its layers keep is what any
# backward pass needs, and XLA had found it by itself.
#
# ## 3. Where JAX may put them
#
# A function with a rule attached must stand wherever a function may. `python -m verify --only
# interop` prints the matrix: each layer, loss, functional form and activation in each context, all
# judged. Here, some of the contexts on a small classifier, with our functions and with plain JAX.

# %%
small = mbp.mlp((4, 3, 3, 2), hidden=mbp.tanh)
of_network, of_loss = as_function(small), as_loss(mbp.SoftmaxCrossEntropy())
x, y = rng.normal(size=(5, 4)), np.array([0, 1, 1, 0, 1])
params = small.init(jax.random.key(0), shape(5, 4))


def our_losses(params, x, y):
    """The loss of each example."""
    return of_loss(of_network(params, x), y)


def plain_losses(params, x, y):
    """The same in plain JAX."""
    for W, b in params[:-1]:
        x = jnp.tanh(x @ W.T + b)
    W, b = params[-1]
    logp = jax.nn.log_softmax(x @ W.T + b)
    return -(jax.nn.one_hot(y, 2, dtype=logp.dtype) * logp).sum(-1)


def per_example(losses):
    """vmap of the gradient: one for each example."""

    def one(params, x, y):
        return jax.grad(lambda params: losses(params, x[None], y[None])[0])(params)

    return jax.vmap(one, (None, 0, 0))


def checkpointed(losses):
    """Computed again for the backward pass."""
    return jax.grad(lambda *args: jax.checkpoint(losses)(*args).mean())


def scanned(losses):
    """The gradient of a loop: three steps of descent, and the loss after them."""

    def after(params, x, y):
        def step(params, _):
            grads = jax.grad(lambda p: losses(p, x, y).mean())(params)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), None

        params, _ = jax.lax.scan(step, params, length=3)
        return losses(params, x, y).mean()

    return jax.grad(after)


def hessian(losses):
    """Of the mean loss, in the first layer's weights and bias."""

    def of_first(first, rest, x, y):
        return losses((first, *rest), x, y).mean()

    return lambda params, x, y: jax.hessian(of_first)(params[0], params[1:], x, y)


for name, context in {
    "vmap(grad): a gradient for each example": per_example,
    "jax.checkpoint": checkpointed,
    "grad of a scan of gradient steps": scanned,
    "jax.hessian": hessian,
}.items():
    pair = context(our_losses), context(plain_losses)
    judge = judges.digits if context in (scanned, hessian) else judges.bounds
    judged(name, judges.same(*pair, params, x, y, judge=judge))

each = per_example(our_losses)(params, x, y)
lengths = np.sqrt(sum((np.asarray(g).reshape(5, -1) ** 2).sum(1) for g in jax.tree.leaves(each)))
print("norms of the five gradients:", np.round(lengths, 3))

# %% [markdown]
# The third line differentiates through gradient steps, as meta-learning does: the gradient of a
# gradient. It and the Hessian work because `backward` is made of JAX's own operations, which can be
# differentiated again, in either mode. (These two are judged at 20 and 40 digits, where a
# difference must shrink with the precision: their bounds aren't finite.) A picture of the Hessian
# of the whole network:

# %%
flat_params, restore = ravel_pytree(params)
H = jax.jit(jax.hessian(lambda flat: our_losses(restore(flat), x, y).mean()))(flat_params)
cuts = np.cumsum([0] + [leaf.size for leaf in jax.tree.leaves(params)])
names = [f"{kind}{l}" for l in (1, 2, 3) for kind in "Wb"]
fig, axis = plt.subplots(figsize=(6.4, 5.4))
bound = float(jnp.abs(H).max())
shown = axis.imshow(H, cmap="RdBu", vmin=-bound, vmax=bound)
for cut in cuts[1:-1]:
    axis.axhline(cut - 0.5, color=GREY, linewidth=0.7)
    axis.axvline(cut - 0.5, color=GREY, linewidth=0.7)
middles = (cuts[1:] + cuts[:-1] - 1) / 2
axis.set_xticks(middles, names)
axis.set_yticks(middles, names)
axis.tick_params(length=0)
axis.set_title(f"{len(H)} × {len(H)} second derivatives of the loss")
fig.colorbar(shown, ax=axis, shrink=0.8)
plt.show()
eigenvalues = np.linalg.eigvalsh(np.asarray(H, np.float64))
assert eigenvalues[0] < 0 < eigenvalues[-1]
print(f"eigenvalues from {eigenvalues[0]:.3f} to {eigenvalues[-1]:.3f}")

# %% [markdown]
# It has eigenvalues of both signs: in all parameters together the loss isn't convex.
#
# **`scan` over layers, with `checkpoint`.** Deep networks are compiled as one layer in a loop. Each
# turn keeps its residuals; under `jax.checkpoint` it keeps its input alone, and computes the rest
# again on the way back. Both take our layers as they are.

# %%
DEPTH, WIDTH, ROWS = 16, 256, 2048
gelu_layer = as_function(mbp.Dense(WIDTH, mbp.gelu_tanh))


def plain_layer(params, x):
    """The same in plain JAX."""
    W, b = params
    return jax.nn.gelu(x @ W.T + b)


def deep(layer, again):
    """The gradient of a column of layers."""
    body = lambda x, params: (layer(params, x), None)  # noqa: E731
    body = jax.checkpoint(body) if again else body
    return jax.grad(lambda params, x: jnp.square(jax.lax.scan(body, x, params)[0]).mean())


column = DenseParams(shape(DEPTH, WIDTH, WIDTH), shape(DEPTH, WIDTH))
column_memory = {
    name: [temporary(deep(layer, again), column, shape(ROWS, WIDTH)) for again in (False, True)]
    for name, layer in (("by hand", gelu_layer), ("plain JAX", plain_layer))
}
fig, axis = plt.subplots(figsize=(9, 2.8))
bars(axis, ["scan", "scan of checkpoint"], *column_memory.values(), labels=("by hand", "plain JAX"))
axis.set(xlabel="temporary memory (MiB)")
axis.set_title(f"{DEPTH} dense layers with gelu, {ROWS} × {WIDTH} in each")
axis.legend(loc="lower right")
plt.show()

few_params = DenseParams(rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3)))
three = as_function(mbp.Dense(3, mbp.gelu_tanh))
for again in (False, True):
    judged(
        f"gradient of a column of layers, checkpoint {again}",
        judges.same(
            deep(three, again), deep(plain_layer, again), few_params, rng.normal(size=(5, 3))
        ),
    )

# %% [markdown]
# In the MLP above XLA could save by itself what autodiff keeps of gelu, by computing it again. Here
# it can't: what a turn keeps is a result of the loop. So here ours, which keeps one array instead
# of five, needs much less. With checkpoints there is nothing left to save: what is kept are the
# inputs of the layers.
#
# **Forward mode** asks another question: how does the output move when the input moves along a
# given direction? A layer has a rule for errors, which go backward, and none for tangents. So JAX
# says:

# %%
try:
    jax.jvp(lambda x: of_network(params, x), (x,), (x,))
except TypeError as error:
    print(f"TypeError: {error}")
gelu = elementwise(mbp.gelu)
z = np.array([-1.0, 0.0, 2.0])
print("gelu' by forward mode:", jax.jvp(gelu, (z,), (np.ones(3),))[1])
print(
    "gelu'' by forward over forward:",
    np.diag(jax.jacfwd(lambda z: jax.jvp(gelu, (z,), (np.ones(3),))[1])(z)),
)
judged(
    "its Hessian, jax.nn.gelu's",
    judges.same(
        jax.hessian(lambda z: gelu(z).sum()),
        jax.hessian(lambda z: jax.nn.gelu(z, approximate=False).sum()),
        z,
    ),
)

# %% [markdown]
# Activations have both modes. For $a = g(z)$ the tangent $\dot a = g'(z)\,\dot z$ and the error
# $dz = g'(z)\, da$ are one product with one array, so their rule is a `custom_jvp`, of which JAX
# makes the backward pass by transposing it, and nothing is lost. For a layer that would lose what
# was derived by hand: JAX would transpose a formula for tangents, and decide by itself what to
# keep. Hence layers have the pair, and forward mode an error. Hessians are forward mode over the
# *gradient*, and there is no rule left to ask by then.

# %% [markdown]
# ## 4. Eight devices, three placements, two kinds of mesh
#
# The first cell has asked for eight CPU devices: they are virtual, and share one processor. Nothing
# gets faster by them. But the compiler treats them as eight real ones, and what it plans for them
# can be read. A **mesh** arranges devices along named axes. A **placement** says for every axis of
# an array along which mesh axis it is divided; an axis that isn't named is whole everywhere.
# `verify.scale.meshes` has three placements of a network's parameters:
#
# - *replicated*: each device has all of them (data parallel, when the examples are divided);
# - *tensor parallel*: each device has some of the units of a layer, and layers come in pairs: the
#   first of a pair is divided by its outputs, the second by its inputs;
# - *fully sharded*: each device has an eighth of every array, and nothing whole.
#
# Arrays are drawn as they are in the computer: a row of $W$ for each output, a row of $X$ for each
# example. A number is a device, and it stands in each part that the device holds.

# %%
network = mbp.mlp([64, 256, 64, 256, 64], hidden=mbp.tanh)
params = network.init(jax.random.key(0), shape(32, 64))
x = jnp.array(rng.normal(size=(32, 64)), jnp.float32)
y = jnp.array(rng.integers(0, 64, 32))
data8 = meshes.auto_mesh(data=8)
data4_model2 = meshes.auto_mesh(data=4, model=2)


def draw(axis, array, sharding, title):
    """Which device holds which part."""
    rows, columns = array.shape
    held = {}
    for device, (r, c) in sharding.devices_indices_map(array.shape).items():
        part = (r.start or 0, c.start or 0, r.stop or rows, c.stop or columns)
        held.setdefault(part, []).append(device.id)
    for number, ((top, left, bottom, right), ids) in enumerate(held.items()):
        colour = plt.cm.viridis(0.1 + 0.85 * number / len(held)) if len(held) > 1 else "#DDDDDD"
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fc=colour, ec="white", alpha=0.55)
        )
        text = "0–7" if len(ids) == 8 else " ".join(map(str, ids))
        axis.text(
            (left + right) / 2, (top + bottom) / 2, text, ha="center", va="center", fontsize=10
        )
    axis.set(xlim=(0, columns), ylim=(rows, 0), xticks=[0, columns], yticks=[0, rows], title=title)
    axis.spines[:].set_visible(False)


PLACEMENTS = {
    "replicated,\ndata = 8": (meshes.replicated, data8),
    "tensor parallel,\ndata = 4, model = 2": (meshes.tensor_parallel, data4_model2),
    "fully sharded,\ndata = 8": (meshes.fully_sharded, data8),
}
fig, axes = plt.subplots(3, 4, figsize=(12.5, 8.4))
for row, (name, (place, mesh)) in zip(axes, PLACEMENTS.items(), strict=True):
    places = place(params, mesh)
    draw(row[0], x, meshes.batch(mesh), "$X$, 32 × 64")
    for axis, l in zip(row[1:], (1, 2, 3), strict=True):
        W = params[l - 1].W
        draw(axis, W, places[l - 1].W, f"$W_{l}$, {W.shape[0]} × {W.shape[1]}")
    row[0].set_ylabel(name, fontsize=11)
fig.suptitle("Who holds what")
plt.show()

# %% [markdown]
# Then the program is the one of a single device. No line of it speaks of devices:

# %%
loss = mbp.SoftmaxCrossEntropy()
gradient = partial(mbp.manual_value_and_grads, network=network, loss=loss)
alone, _ = gradient(params, x, y)

for name, (place, mesh) in PLACEMENTS.items():
    places = place(params, mesh)
    step = jax.jit(gradient, out_shardings=(meshes.replicated(0, mesh), places))
    J, grads = step(jax.device_put(params, places), *jax.device_put((x, y), meshes.batch(mesh)))
    spec = grads[0].W.sharding.spec
    print(f"{' '.join(name.split()):<37} J = {J:.6f}, one device {alone:.6f}; dW1 lies at {spec}")

# %% [markdown]
# **Auto and Explicit.** On an *Auto* mesh types say nothing of devices, and XLA propagates the
# placements through the program as it thinks best. An axis made by `jax.make_mesh` is *Explicit*
# unless one says otherwise: an array's type says where it lies, each operation has a rule for its
# result, and where there are two answers JAX asks. Our layers answer, by the rule that a gradient
# lies where its parameter does:

# %%
explicit = jax.make_mesh((8,), ("data",))
for name, mesh in {"Auto": data8, "Explicit": explicit}.items():
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, meshes.fully_sharded(params, mesh))
        here = jax.device_put((x, y), NamedSharding(mesh, P("data")))
        J, grads = jax.jit(gradient)(placed, *here)
        W, dW = placed[0].W, grads[0].W
        x_type, W_type, dW_type = map(jax.typeof, (here[0], W, dW))
        print(f"{name:<9} x: {x_type}, W1: {W_type}, dW1: {dW_type}; J = {J:.6f}")

# %% [markdown]
# ## 5. Which collective is which term of the formula
#
# What devices must tell each other can be read off the formulas. Three rules are enough. Write
# $v_d$ for the part of $v$ that device $d$ holds.
#
# **A sum over what is divided is a sum over devices.** Examples are divided: device $d$ has the
# rows $X_d$, and with them everything that has a row for each example. Only sums over examples are
# left:
#
# $$dW = \sum_i dZ_i\, A_i^{\mathsf T}
# = \underbrace{\sum_d}_{\text{all-reduce}}\; dZ_d^{\mathsf T} A_d, \qquad
# db = \sum_d \sum_{i \in d} dZ_i, \qquad J = \sum_d J_d .$$
#
# This is data parallelism: one all-reduce, of all gradients and the loss.
#
# **Units are divided (Megatron).** A pair of layers, $A = \sigma(X W_1^{\mathsf T})$ and
# $\text{out} = A W_2^{\mathsf T}$, with an activation $\sigma$ (Megatron has another use for the
# letter $g$). Device $d$ has some units: their rows $W_{1,d}$ and their columns $W_{2,d}$.
#
# $$A_d = \sigma(X W_{1,d}^{\mathsf T}), \qquad
# \text{out} = \underbrace{\sum_d}_{g:\ \text{all-reduce}} A_d W_{2,d}^{\mathsf T}$$
#
# since a product contracts over units. Backward, the error of out is whole on each device, and
#
# $$dW_{2,d} = d\text{out}^{\mathsf T} A_d, \quad
# dZ_d = (d\text{out}\, W_{2,d}) \odot \sigma'(Z_d), \quad dW_{1,d} = dZ_d^{\mathsf T} X, \qquad
# dX = \underbrace{\sum_d}_{f:\ \text{all-reduce}} dZ_d W_{1,d} .$$
#
# Gradients of weights need nobody. One sum forward and one backward, of $m \times n$ numbers,
# whatever the number of units. Megatron's paper calls the place where the pair begins $f$ (forward
# a copy, backward a sum) and its end $g$ (forward a sum, backward a copy). The pair that reads the
# data itself needs no $dX$.
#
# **Parameters are divided (fully sharded).** Device $d$ has examples, and the part $W_d$ of every
# array. Before use, arrays are put together; the gradient is the sum of data parallelism, of which
# a device wants its own part alone:
#
# $$W = \underbrace{\text{concat}_d\, W_d}_{\text{all-gather}}, \qquad
# dW_d = \Big(\underbrace{\sum_{d'}}_{\text{reduce-scatter}} dZ_{d'}^{\mathsf T} A_{d'}\Big)_d .$$
#
# | forward | is a map | whose transpose is, backward |
# |---|---|---|
# | copy to all devices | $v \mapsto (v, \dots, v)$ | sum over devices (all-reduce) |
# | sum over devices | $(v_d) \mapsto \sum_d v_d$ | copy to all devices |
# | all-gather | $(v_d) \mapsto (\text{concat}, \dots)$ | reduce-scatter |

# %% [markdown]
# The pair in a picture, on two of the devices: what stays on one device, and the two places where
# something crosses.

# %%
FORWARD = ("$X$", r"$A_d = \sigma(X W_{1,d}^{\mathsf{T}})$", r"$A_d W_{2,d}^{\mathsf{T}}$", "out")
BACKWARD = ("$dX$", "$dZ_d W_{1,d}$", r"$dZ_d = (d\mathrm{out}\, W_{2,d}) \odot \sigma'$", "$d$out")
fig, axes = plt.subplots(2, 1, figsize=(11.5, 4.8))
for axis, names, way, crossing, title in (
    (axes[0], FORWARD, 1, (2, 3), "forward: $g$ sums, $f$ copies"),
    (axes[1], BACKWARD, -1, (0, 1), "backward: $f$ sums, $g$ copies"),
):
    for lane in (0, 1):
        for place, name in enumerate(names):
            whole = place in (0, 3)  # the same on all devices
            box = {"boxstyle": "round,pad=0.4", "ec": GREY, "fc": "#DDDDDD" if whole else "white"}
            text = name.replace("_d", f"_{lane}").replace(",d", f",{lane}")
            axis.text(place, 1 - lane, text, ha="center", va="center", bbox=box, fontsize=11)
        for place in range(3):
            start, end = (place + 0.36, place + 0.64)[::way]
            sums = (place, place + 1) == crossing
            arrow = {"arrowstyle": "-|>", "color": RED if sums else GREY, "lw": 1.8}
            axis.annotate("", (end, 1 - lane), (start, 1 - lane), arrowprops=arrow)
            if sums:
                axis.annotate("", (end, lane), (start, 1 - lane), arrowprops=arrow)
    middle = sum(crossing) / 2
    axis.text(middle, 1.28, "all-reduce", color=RED, ha="center", fontsize=10.5)
    for lane in (0, 1):
        axis.text(-0.62, 1 - lane, f"device {lane}", ha="right", va="center", fontsize=10.5)
    axis.set(xlim=(-1.0, 3.3), ylim=(-0.4, 1.5), xticks=[], yticks=[], title=title)
    axis.spines[:].set_visible(False)
fig.suptitle("A pair of layers, divided by units (grey boxes: the same on all devices)")
plt.show()

# %% [markdown]
# Here both are written out, each as the code of one device in `shard_map`, with the formulas above
# line by line. All numbers are small integers, so that sums are exact in any order.


# %%
def integers(*sizes):
    """Small integers as floats: sums and products of some hundreds of them are exact."""
    return jnp.array(rng.integers(-3, 4, size=sizes), jnp.float32)


def one_device(W1, W2, x, dout):
    """out, dW1, dW2, dX of the pair, by the notes."""
    z = x @ W1.T
    a = jnp.maximum(z, 0)
    dz = (dout @ W2) * (z > 0)
    return {"out": a @ W2.T, "dW1": dz.T @ x, "dW2": dout.T @ a, "dX": dz @ W1}


def megatron(W1, W2, x, dout):
    """The same on a device that has some of the units."""
    z = x @ W1.T
    a = jnp.maximum(z, 0)
    out = jax.lax.psum(a @ W2.T, "model")  # g
    dz = (dout @ W2) * (z > 0)
    dx = jax.lax.psum(dz @ W1, "model")  # f
    return {"out": out, "dW1": dz.T @ x, "dW2": dout.T @ a, "dX": dx}


def sharded(W1, W2, x, dout):
    """The same on a device that has some of the examples, and a part of each array."""
    W1, W2 = (jax.lax.all_gather(W, "data", tiled=True) for W in (W1, W2))
    found = one_device(W1, W2, x, dout)
    for name in ("dW1", "dW2"):
        found[name] = jax.lax.psum_scatter(found[name], "data", tiled=True)
    return found


W1, W2, x_pair, dout = integers(16, 8), integers(8, 16), integers(32, 8), integers(32, 8)
UNITS = {"out": P(), "dW1": P("model"), "dW2": P(None, "model"), "dX": P()}
PARTS = dict.fromkeys(UNITS, P("data"))
right = one_device(W1, W2, x_pair, dout)
for local, mesh, given, found in (
    (megatron, meshes.auto_mesh(model=8), (P("model"), P(None, "model"), P(), P()), UNITS),
    (sharded, data8, P("data"), PARTS),
):
    program = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=given, out_specs=found))
    equal(f"{local.__name__}: out, dW1, dW2, dX", program(W1, W2, x_pair, dout), right)
    text = program.lower(W1, W2, x_pair, dout).compile().as_text()
    for kind, traffic in collectives(text).items():
        print(f"    {traffic.count} × {kind}, {traffic.bytes} bytes")

# %% [markdown]
# The pair's two sums have become one collective of two arrays, since here the error is given, and
# doesn't wait for the output.
#
# ## 6. Counted in the compiled program
#
# Under `jit` nobody writes collectives: XLA derives them from the placements, as the section before
# did by hand. `verify.scale.collectives` reads the compiled program and counts them, each as often
# as it runs. The bytes of one are those of its result or its operands on one device, whichever are
# more. Here for the MLP of section 4 with 1024 examples, its gradient by hand and by `jax.grad`.
# Nothing is run: to count, one compiles.

# %%
M = 1024
case = Case("MLP", network, loss, shape(M, 64), shape(M, dtype=jnp.int32))
traffic = {}
for layout in LAYOUTS:
    for way, step in (("by hand", case.by_hand), ("jax.grad", case.by_autodiff)):
        traffic[layout.name, way] = collectives(layout.compiled(step, case).as_text())
    kinds = ", ".join(
        f"{each.count} {kind} ({each.kib:g} KiB)"
        for kind, each in traffic[layout.name, "by hand"].items()
    )
    print(f"{layout.name:<14} {kinds}")

names = [layout.name for layout in LAYOUTS]
sums = {key: total(found) for key, found in traffic.items()}
fig, axes = plt.subplots(1, 2, figsize=(12.5, 3.8))
for axis, of, form in ((axes[0], "count", "{:.0f}"), (axes[1], "kib", "{:,.0f}")):
    ours, theirs = (
        [getattr(sums[name, way], of) for name in names] for way in ("by hand", "jax.grad")
    )
    bars(axis, names, ours, theirs, form, ("by hand", "jax.grad"))
axes[0].set(xlabel="collectives", title="how many")
axes[1].set(xlabel="KiB on each device", title="how much")
axes[1].legend(loc="lower right")
fig.suptitle("What eight devices tell each other for one gradient")
plt.show()
assert all(sums[name, "by hand"] == sums[name, "jax.grad"] for name in names)

numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
assert traffic["data", "by hand"]["all-reduce"].bytes == 4 * (numbers + 1)
assert traffic["tensor", "by hand"]["all-reduce"].bytes == 3 * 4 * M * 64
assert traffic["fully sharded", "by hand"]["all-gather"].bytes == 4 * numbers
held = sum(
    np.prod(place.shard_shape(leaf.shape))
    for leaf, place in zip(
        *map(jax.tree.leaves, (params, meshes.tensor_parallel(params, data4_model2))), strict=True
    )
)
both = traffic["data × tensor", "by hand"]["all-reduce"].bytes
assert both == 3 * 4 * (M // 4) * 64 + 4 * (held + 1)
print(f"parameters: {numbers}, of 4 bytes each; with model = 2 a device holds {held}")

few_rows = Case("MLP", network, loss, shape(32, 64), shape(32, dtype=jnp.int32))
found = collectives(LAYOUTS[-1].compiled(few_rows.by_hand, few_rows).as_text())
print(
    "fully sharded, 32 examples:",
    ", ".join(f"{t.count} {k} ({t.kib:g} KiB)" for k, t in found.items()),
)

# %% [markdown]
# Each of these numbers is one of the formulas.
#
# - *data*: one all-reduce of all gradients and of $J$: 4 bytes for each parameter, and 4.
# - *tensor*: two pairs of layers. Each has its $g$ forward; backward the second has its $f$, and
#   the first none, as nobody asks for the gradient of the data. Three times $1024 \times 64$
#   numbers.
# - *data × tensor*: the three, of a quarter of the examples; and the all-reduce of gradients, of
#   half of the parameters where they are divided.
# - *fully sharded*: each of the eight arrays is gathered once, and serves forward and backward. The
#   sum is an all-reduce here, of which each device then takes its part: the compiler for CPUs
#   doesn't make a reduce-scatter of the two. The program of section 5 has one.
#
# XLA is free to do otherwise. With 32 examples it finds that activations are smaller than weights,
# and moves these instead, as the last line printed shows.
#
# The gradient by hand has exactly the collectives of `jax.grad`'s. It must: the sums are in the
# mathematics. `python -m verify.scale collectives` prints the table for an MLP, a ResNet and a GPT,
# and a test holds ours to no more than `jax.grad`'s.
#
# ## 7. `shard_map`: the local gradient
#
# In `shard_map` one writes the program of one device, and says oneself what is exchanged.
# `manual_grads` there is what it says: the gradient of the mean loss of the examples that this
# device has, the **local** gradient. With as many examples on each device the mean of local means
# is the mean, so `pmean` of the local gradients is the gradient.
#
# It is tempting to write the same with `jax.grad`, and it is wrong:

# %%
linear, half = mbp.mlp([3, 2]), mbp.SquaredError()
lin_params = DenseParams(integers(2, 3), integers(2))
lin_x, lin_y = integers(16, 3), integers(16, 2)
task = {"network": linear, "loss": half}


def mean_loss(params, x, y):
    """For jax.grad."""
    return half.value(linear.forward((params,), x)[0], y).mean()


PLACES = (P(), P("data"), P("data"))


def mapped(local, check_vma=True, places=PLACES):
    """The program of one device, for eight; what it returns is the same on all."""
    return jax.jit(
        jax.shard_map(local, mesh=data8, in_specs=places, out_specs=P(), check_vma=check_vma)
    )


def by_hand(params, x, y):
    """The mean over devices of our local gradient."""
    return jax.lax.pmean(mbp.manual_grads(params, x, y, **task), "data")


def by_grad(params, x, y):
    """The same, it seems, with jax.grad."""
    return jax.lax.pmean(jax.grad(mean_loss)(params, x, y), "data")


def of_pmean(params, x, y):
    """The gradient of the mean over devices of the loss."""
    return jax.grad(lambda params: jax.lax.pmean(mean_loss(params, x, y), "data"))(params)


right = mbp.manual_grads(lin_params, lin_x, lin_y, **task)
print(f"{'one device':<38} dW = {right.W.ravel()}")
for check_vma in (True, False):
    for local in (by_hand, by_grad):
        found = mapped(local, check_vma)(lin_params, lin_x, lin_y)
        same = bool((found.W == right.W).all())
        times = float((found.W / right.W)[0, 0])
        name = f"pmean {local.__name__}, check_vma={check_vma}"
        print(f"{name:<38} dW = {found.W.ravel()}: × {times:g}")
        assert same == (local is by_hand or not check_vma) and times == (1 if same else 8)
found = mapped(of_pmean)(lin_params, lin_x, lin_y)
equal("grad of the pmean of the loss, check_vma=True", found, right)

# %% [markdown]
# Parameters are the same on all devices, and `jax.grad` takes the gradient of what *all* of these
# do with them: the copy to all devices is part of the program, and its transpose, in the table
# above, is a sum. So with `check_vma`, the default, `jax.grad` has summed already, and `pmean` of
# eight equal sums changes nothing: the gradient is too large by the number of devices. Nothing
# fails; the learning rate is eight times what was meant. With `check_vma=False` JAX doesn't know
# what is the same everywhere, doesn't sum, and the line is right. Ours is right with both.
#
# With `jax.grad` and `check_vma` the line that is right is the gradient of the `pmean` of the
# *loss*, the last one printed.
#
# **Weights.** When examples count differently, or some not at all, local means must not be
# averaged. Say what each example counts in the whole, $w_i / \sum_j w_j$, and *add* the local
# gradients: they have the weights in them.

# %%
weights = jnp.array([0, 0, *[1] * 8, 3, 3, 1, 1, 0, 0], jnp.float32)
assert weights.sum() == 16  # a power of two, so that quotients are exact
right = mbp.manual_grads(lin_params, lin_x, lin_y, weights=weights / weights.sum(), **task)


def local_sum(params, x, y, w):
    """psum of local gradients, weights from the whole."""
    w = w / jax.lax.psum(w.sum(), "data")
    return jax.lax.psum(mbp.manual_grads(params, x, y, weights=w, **task), "data")


def mean_of_means(params, x, y, w):
    """The mistake: each device divides by its own weights."""
    w = w / jnp.maximum(w.sum(), 1)
    return jax.lax.pmean(mbp.manual_grads(params, x, y, weights=w, **task), "data")


places = (*PLACES, P("data"))
found = mapped(local_sum, places=places)(lin_params, lin_x, lin_y, weights)
equal("psum of local gradients with the weights of the whole", found, right)
wrong = mapped(mean_of_means, places=places)(lin_params, lin_x, lin_y, weights)
print(f"right:            db = {right.b}\nmeans of devices: db = {wrong.b}")
assert (wrong.b != right.b).any()

# %% [markdown]
# ## 8. A rule of your own: two types that a cotangent must have
#
# Whoever writes a `custom_vjp` for one device finds two new errors on many. A cotangent must be of
# its primal's type, and types have got two more parts: where an array lies (`.sharding`, on
# Explicit meshes), and along which axes devices have different values (in `shard_map`: the axes
# along which it is *varying*). A dense layer, from any tutorial:


# %%
def with_rule(backward):
    """x Wᵀ, with this backward pass."""

    @jax.custom_vjp
    def dense(W, x):
        return x @ W.T

    dense.defvjp(lambda W, x: (x @ W.T, (W, x)), backward)
    return dense


def naive(kept, dout):
    """dW and dx."""
    W, x = kept
    return dout.T @ x, dout @ W


def mended(kept, dout):
    """The same, each of its primal's type."""
    W, x = kept
    dW = jnp.einsum("mo,mi->oi", dout, x, out_sharding=jax.typeof(W).sharding)
    return placed_like(dW, jax.typeof(W)), placed_like(dout @ W, jax.typeof(x))


def places_of(dense):
    """Its gradient for W on one device, an Auto mesh, an Explicit one, and in shard_map."""

    def gradient(W, x):
        return jax.grad(lambda W: jnp.square(dense(W, x)).sum())(W)

    def on(mesh):
        def run(W, x):
            W, x = (
                jax.device_put(v, NamedSharding(mesh, p)) for v, p in ((W, P()), (x, P("data")))
            )
            with jax.set_mesh(mesh):
                return jax.jit(gradient)(W, x)

        return run

    return {
        "one device": gradient,
        "Auto mesh": on(data8),
        "Explicit mesh": on(explicit),
        "shard_map": mapped(gradient, places=(P(), P("data"))),
    }


W, x_rule = integers(2, 3), integers(16, 3)
right = 2 * (x_rule @ W.T).T @ x_rule
for backward in (naive, mended):
    print(f"{backward.__name__}:")
    for place, gradient_there in places_of(with_rule(backward)).items():
        try:
            found = gradient_there(W, x_rule)
        except Exception as error:
            print(f"  {place:<14} {type(error).__name__}: {error}")
            assert backward is naive
        else:
            assert (np.asarray(found) == np.asarray(right)).all()
            print(f"  {place:<14} right")

# %% [markdown]
# On the Explicit mesh a product contracts over examples, which are divided: each device has a sum,
# and JAX asks where the sum of these is to lie. `out_sharding=` answers: where $W$ lies. In
# `shard_map` the local $dW$ differs from device to device (`{V:data}`), while $W$ doesn't, and JAX
# won't sum on its own in a rule that isn't its own. `placed_like` is a few lines around
#
# ```python
# shared = varying(jax.typeof(cotangent)) - varying(jax.typeof(primal))
# cotangent = jax.lax.psum(cotangent, tuple(shared))
# ```
#
# the transpose of the copy once more. `as_function` does it for every layer; that is what makes
# the columns of devices in `python -m verify --only interop` green.
#
# ## 9. Training on one device, on eight, in two processes
#
# One program, `verify/scale/train.py`, trains a small GPT on Python's help texts in all of these:
#
# ```
# python -m verify.scale train                                  # on what devices there are
# python -m verify.scale train --devices 8                      # eight virtual CPU devices
# python -m verify.scale train --devices 8 --mesh data=4,tensor=2
# python -m verify.scale train --devices 8 --fully-sharded
# python -m verify.scale train --devices 8 --processes 2        # four in each of two processes
# ```
#
# Two processes find each other by `jax.distributed`, each reads its own rows of every batch, and
# the sums cross over between them (gloo, on CPUs). With `--checkpoints DIR` a run that was killed
# goes on from its last checkpoint. On several hosts one starts the same command on each, with
# `--process-id` and `--coordinator`. The curves below were stored with `--json`; the file
# `06_training.json` has each command, and what it ran on.

# %%
runs = json.loads(Path("06_training.json").read_text())
assert all(run["settings"] == runs["one device"]["settings"] for run in runs.values())
assert len({run["text"] for run in runs.values()}) == 1
first, *others = (np.array(run["losses"]) for run in runs.values())
fig, (left, right_axis) = plt.subplots(1, 2, figsize=(12.5, 3.9))
left.plot(first, color="black", linewidth=2)
left.set(
    xlabel="step", ylabel="loss per character (nats)", title="in one process and in two: one curve"
)
apart = [np.abs(other - first) for other in others]
for (name, run), difference, colour in zip(
    list(runs.items())[1:], apart, (BLUE, ORANGE, GREEN, RED), strict=True
):
    running = np.maximum.accumulate(difference)
    right_axis.plot(running, color=colour, label=name)
    print(f"{name:<24} at most {difference.max():.1e} from one device's losses")
    print(f"    {run['command'].split(' --dtype')[0]}")
left.plot(others[-1], "--", color=RED, linewidth=1.5)
left.legend(["one device", "two processes of four"])
right_axis.axhline(np.spacing(first[0]), color=GREY, linestyle=":", label="one unit of rounding")
right_axis.set(xlabel="step", ylabel="largest difference so far", yscale="log")
right_axis.set_title("how far from one device, in float64")
right_axis.set_ylim(5e-16, 4e-13)
right_axis.legend(fontsize=9.5, loc="upper left")
plt.show()
print("settings:", runs["one device"]["command"].split("train ")[1])

# %% [markdown]
# The losses of all layouts are one curve. They differ by rounding alone, as devices add in another
# order. Training spreads the differences, and after a hundred steps they are still less than
# $10^{-13}$, of a loss of about 3.

# %% [markdown]
# ## 10. Exercises
#
# Fill in what is `None` and run the cell. As committed, nothing is filled in. All arguments are
# small integers, so that right answers are exact: the checker, `checker.py` beside this notebook,
# asks for equality. Solutions follow at the end.

# %% [markdown]
# **Exercise 1.** One layer, divided by its inputs: device $d$ has the columns $W_d$ and the
# features $X_d$, and $\text{out} = \sum_d X_d W_d^{\mathsf T} + b$. All eight devices are on the
# first axis here: `W` is $(8, n', k)$, `x` $(8, m, k)$, `b` $(n')$, and `dout`, which every device
# has, $(m, n')$. Which of the four results needs a sum over devices?


# %%
def my_divided_layer(W, b, x, dout):
    """out (m, n'), dW (8, n', k), db (n'), dx (8, m, k)."""
    out = None
    dW = None
    db = None
    dx = None
    return {"out": out, "dW": dW, "db": db, "dx": dx}


W_1, b_1, x_1 = integers(8, 5, 2), integers(5), integers(8, 4, 2)
dout_1 = integers(4, 5)


def whole_layer(W, b, x):
    """The judge's own: put together, on one device."""
    return jnp.concatenate(x, -1) @ jnp.concatenate(W, -1).T + b


out_1, pull_1 = jax.vjp(whole_layer, W_1, b_1, x_1)
dW_1, db_1, dx_1 = pull_1(dout_1)
exercise_1 = ((W_1, b_1, x_1, dout_1), {"out": out_1, "dW": dW_1, "db": db_1, "dx": dx_1})
solved_1 = check_answer(my_divided_layer, *exercise_1)

# %% [markdown]
# **Exercise 2.** The backward pass of $\text{out} = \gamma \odot x$ for `shard_map`: $\gamma$,
# $(C)$, is the same on all devices, and each has rows of its own of $x$, $(m, C)$. The axis is
# called `"data"`. Your function is made the rule of a `custom_vjp`, and that is run on eight
# devices.


# %%
def my_scale_backward(gamma, x, dout):
    """dgamma, (C), the same on all devices, and dx, (m, C)."""
    dgamma = None
    dx = None
    return {"dgamma": dgamma, "dx": dx}


def on_eight_devices(backward):
    """The gradients that come of it for the loss Σ out²."""

    def gradients(gamma, x):
        found = {}

        def rule(kept, dout):
            found.update(backward(*kept, dout))
            return found.get("dgamma"), found.get("dx")

        scale = jax.custom_vjp(lambda gamma, x: gamma * x)
        scale.defvjp(lambda gamma, x: (gamma * x, (gamma, x)), rule)
        local = jax.grad(lambda gamma, x: jnp.square(scale(gamma, x)).sum(), (0, 1))
        program = jax.shard_map(
            local, mesh=data8, in_specs=(P(), P("data")), out_specs=(P(), P("data"))
        )
        dgamma, dx = program(gamma, x)
        given = {"dgamma": dgamma, "dx": dx}
        return {name: None if found.get(name) is None else given[name] for name in given}

    return gradients


gamma_2, x_2 = integers(3), integers(16, 3)
right_2 = {"dgamma": 2 * gamma_2 * (x_2**2).sum(0), "dx": 2 * gamma_2**2 * x_2}
exercise_2 = ((gamma_2, x_2), right_2)
solved_2 = check_answer(on_eight_devices(my_scale_backward), *exercise_2)

# %% [markdown]
# This is what the checker says of the rule for one device. The message is JAX's:


# %%
def of_one_device(gamma, x, dout):
    """Right on one device, and no more."""
    return {"dgamma": (dout * x).sum(0), "dx": dout * gamma}


assert not check_answer(on_eight_devices(of_one_device), *exercise_2)

# %% [markdown]
# **Exercise 3** (on paper).
#
# a. A pair of layers from $n$ features to $4n$ units and back, $m$ examples, no biases, somewhere
# within a network. From which $m$ on does data parallelism tell less than tensor parallelism?
#
# b. Somebody trains with `pmean(jax.grad(...))` on eight devices, the wrong one, and adam. The
# losses look right. Why? Name something usual that makes the mistake show.
#
# c. The gradient of each example is to be clipped before the sum. How many collectives more?
#
# <details>
# <summary>Answers</summary>
#
# a. Data: all gradients, $8n^2$ numbers. Tensor: $f$ and $g$, $2mn$. Equal at $m = 4n$: with more
# examples data parallelism tells less.
#
# b. Adam divides the mean gradient by the root of the mean square, and a factor of both drops out.
# It shows where something isn't scaled with it: a global norm is clipped at an eighth of what was
# meant, and weight decay that is added to the gradient counts an eighth.
#
# c. None. A norm is of one example, and each example lies on one device; what is summed are the
# clipped gradients, by the same all-reduce.
#
# </details>
#
# The same answers, computed: bytes counted in compiled programs, adam's updates at one and at eight
# times the gradient, and the collectives of a clipped sum.

# %%
n = 16
pair_net = mbp.sequential(mbp.Dense(4 * n, mbp.relu, bias=False), mbp.Dense(n, bias=False))


def pair_gradient(params, x, dout):
    """A pair within a network: out, the gradients and dX, whose error comes from the next one."""
    out, residuals = pair_net.forward(params, x)
    dparams, dx = pair_net.backward(params, residuals, dout)
    return out, dx, dparams


pair_params = jax.eval_shape(pair_net.init, jax.random.key(0), shape(1, n))
model8 = meshes.auto_mesh(model=8)
for m in (2 * n, 4 * n, 8 * n):
    told = []
    for place, mesh in ((meshes.replicated, data8), (meshes.tensor_parallel, model8)):
        places, rows = place(pair_params, mesh), meshes.batch(mesh)
        program = jax.jit(
            pair_gradient, in_shardings=(places, rows, rows), out_shardings=(rows, rows, places)
        )
        text = program.lower(pair_params, shape(m, n), shape(m, n)).compile().as_text()
        told.append(total(collectives(text)).bytes)
    print(f"a. n = {n}, m = {m:>3}: data {told[0]:>6} bytes, tensor {told[1]:>6}")
    assert told == [4 * 8 * n * n, 4 * 2 * m * n]

optimizers = {
    "adam": optax.adam(1e-3),
    "sgd after clipping to norm 1": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)),
    "adam, decay in the gradient": optax.chain(optax.add_decayed_weights(0.3), optax.adam(1e-3)),
}
slopes = (jnp.array([0.3, -0.1, 0.2]), jnp.array([-0.2, -0.1, 0.4]))  # of two steps
for name, optimizer in optimizers.items():
    ends = []
    for factor in (1, 8):
        p = jnp.ones(3)
        memory_of = optimizer.init(p)
        for slope in slopes:
            updates, memory_of = optimizer.update(factor * slope, memory_of, p)
            p = optax.apply_updates(p, updates)
        ends.append(p - 1)
    print(f"b. {name:<30} moved by {ends[0]}; with 8 × the gradient by {ends[1]}")


def clipped(params, x, y):
    """The mean of clipped gradients."""
    return mbp.clipped_grads(params, x, y, network=network, loss=loss, clip=1.0)


for name, function in (("plain", case.by_hand), ("clipped", clipped)):
    program = jax.jit(
        function,
        in_shardings=(meshes.replicated(params, data8), *[meshes.batch(data8)] * 2),
        out_shardings=NamedSharding(data8, P()),
    )
    text = program.lower(case.params, shape(32, 64), shape(32, dtype=jnp.int32)).compile().as_text()
    print(f"c. {name:<8} {collectives(text)}")


# %% [markdown]
# **Solutions.**


# %%
def divided_layer_solution(W, b, x, dout):
    """Exercise 1: the output alone needs a sum over devices; the bias comes in once, after it."""
    out = sum(x_d @ W_d.T for W_d, x_d in zip(W, x, strict=True)) + b
    dW = jnp.stack([dout.T @ x_d for x_d in x])
    dx = jnp.stack([dout @ W_d for W_d in W])
    return {"out": out, "dW": dW, "db": dout.sum(0), "dx": dx}


def scale_backward_solution(gamma, x, dout):
    """Exercise 2: a sum over examples that are divided is a sum over devices."""
    return {"dgamma": jax.lax.psum((dout * x).sum(0), "data"), "dx": dout * gamma}


assert check_answer(divided_layer_solution, *exercise_1)
assert check_answer(on_eight_devices(scale_backward_solution), *exercise_2)

# %% [markdown]
# ## Sources
#
# - JAX's documentation: *Custom derivative rules for Python code*; *Explicit sharding*; *Manual
#   parallelism with shard_map*.
# - M. Shoeybi et al., *Megatron-LM: training multi-billion parameter language models using model
#   parallelism* (2019), arXiv:1909.08053: pairs of layers, $f$ and $g$.
# - S. Rajbhandari, J. Rasley, O. Ruwase, Y. He, *ZeRO: memory optimizations toward training
#   trillion parameter models* (2020), arXiv:1910.02054: fully sharded parameters.
# - Y. Xu et al., *GSPMD: general and scalable parallelization for ML computation graphs* (2021),
#   arXiv:2105.04663: how XLA divides a program.
# - T. Dao, D. Fu, S. Ermon, A. Rudra, C. Ré, *FlashAttention* (2022), arXiv:2205.14135: attention
#   in blocks.
# - E. Wijmans et al., *Cut your losses in large-vocabulary language models* (2024),
#   arXiv:2411.09009: cross-entropy without logits.
# - T. Chen, B. Xu, C. Zhang, C. Guestrin, *Training deep nets with sublinear memory cost* (2016),
#   arXiv:1604.06174: checkpoints.
# - P. Kidger, C. Garcia, *Equinox: neural networks in JAX via callable PyTrees and filtered
#   transformations* (2021), arXiv:2111.00254.
