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
# # Backpropagation, formula by formula
#
# This notebook derives the backward pass of a neural network by hand. Every formula is derived in a
# text cell, run in the code cell below it, and compared there with automatic differentiation. The
# code is that of `manual_bp.formulas`, in the letters of the formulas. All outputs are kept, so the
# notebook can be read without running anything.
#
# 1. The network, its forward pass, and the judge
# 2. The output layer: $dZ^{[L]} = A^{[L]} - Y$
# 3. The activation: why the product is element-wise
# 4. The weights, backward: why the transpose
# 5. The parameters: $dW^{[l]}$ and $db^{[l]}$
# 6. Where $1/m$ belongs
# 7. Every intermediate, by hand and by autodiff
# 8. How close, and against what: scatter, depth, width, finite differences
# 9. Formulas broken on purpose
# 10. How errors vanish or explode with depth
# 11. Training on digits
# 12. Exercises, with a checker; solutions

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.colors import ListedColormap
from sklearn.datasets import load_digits

import manual_bp as mbp
from manual_bp import formulas

jax.config.update("jax_enable_x64", True)  # 53 bits: what is left of a difference is rounding

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

# %% [markdown]
# ## 1. The network, its forward pass, and the judge
#
# A batch holds $m$ examples, one in each column. Layer $l$ has $n_l$ units; $l = 0$ is the input.
#
# | symbol | meaning | shape |
# |---|---|---|
# | $A^{[0]} = X$ | the input | $(n_0, m)$ |
# | $W^{[l]}$ | weights of layer $l$ | $(n_l, n_{l-1})$ |
# | $b^{[l]}$ | bias | $(n_l, 1)$ |
# | $Z^{[l]}$ | pre-activation | $(n_l, m)$ |
# | $A^{[l]}$ | post-activation | $(n_l, m)$ |
# | $Y$ | ground truth | $(n_L, m)$ |
#
# Forward, for $l = 1, \dots, L$:
#
# $$Z^{[l]} = W^{[l]} A^{[l-1]} + b^{[l]}, \qquad A^{[l]} = g^{[l]}\big(Z^{[l]}\big).$$
#
# In index notation, with $i$ a unit of layer $l$, $j$ a unit of layer $l-1$ and $n$ an example,
#
# $$Z^{[l]}_{in} = \sum_j W^{[l]}_{ij} A^{[l-1]}_{jn} + b^{[l]}_i,
# \qquad A^{[l]}_{in} = g^{[l]}\big(Z^{[l]}_{in}\big) \quad (l < L).$$
#
# The last activation is softmax, $A^{[L]}_{in} = e^{Z^{[L]}_{in}} / \sum_c e^{Z^{[L]}_{cn}}$. It is
# the one activation here that mixes units. The loss of example $n$ is the cross-entropy $\ell_n$,
# and the cost $J$ is the mean:
#
# $$\ell_n = -\sum_i Y_{in} \log A^{[L]}_{in}, \qquad J = \frac{1}{m} \sum_n \ell_n.$$
#
# Our example has three layers of unequal sizes and two different hidden activations. No two sizes
# are equal, so that a product of the wrong matrices cannot fit by luck. Biases are not zero. The
# label of the last example is soft: the formulas ask only that each column of $Y$ sums to one.

# %%
sizes, m = (4, 6, 5, 3), 7
L = len(sizes) - 1


def sigma(z):
    """1 / (1 + e⁻ᶻ)."""
    return 1 / (1 + jnp.exp(-z))


def softmax(z):
    """Over the units of each example: down each column."""
    return jnp.exp(z) / jnp.exp(z).sum(axis=0, keepdims=True)


g = {1: jnp.tanh, 2: sigma, 3: softmax}
g_prime = {1: lambda z: 1 - jnp.tanh(z) ** 2, 2: lambda z: sigma(z) * (1 - sigma(z))}


def draw(sizes, m, seed):
    """Random parameters and a random batch for a network of these sizes."""
    rng = np.random.default_rng(seed)
    W, b = {}, {}
    for l in range(1, len(sizes)):
        W[l] = jnp.array(rng.normal(size=(sizes[l], sizes[l - 1])) / np.sqrt(sizes[l - 1]))
        b[l] = jnp.array(0.5 * rng.normal(size=(sizes[l], 1)))
    X = jnp.array(rng.normal(size=(sizes[0], m)))
    Y = np.eye(sizes[-1])[:, rng.integers(sizes[-1], size=m)]
    Y[:, -1] = rng.dirichlet(np.ones(sizes[-1]))
    return W, b, X, jnp.array(Y)


W, b, X, Y = draw(sizes, m, seed=0)
Z, A = formulas.forward_pass(W, b, X, g)
J = -(Y * jnp.log(A[L])).sum(axis=0).mean()

for l in range(1, L + 1):
    print(
        f"layer {l}:  W {W[l].shape}  A_prev {A[l - 1].shape}  b {b[l].shape}  ->  Z {Z[l].shape}"
    )
print(f"J = {J:.6f}")

# %% [markdown]
# **The judge.** The same cost is written a second time, with `jax.nn` and `optax` alone, and JAX
# differentiates it. Autodiff gives derivatives with respect to arguments. To have those of the
# intermediates too, we add an argument that is zero to each $Z^{[l]}$ and $A^{[l]}$: $Z + \delta$
# moves with $\delta$ exactly as $Z$ would, so $\partial J / \partial \delta$ at $\delta = 0$ is
# $\partial J / \partial Z$.
#
# One convention must be settled now; section 6 is about it. As in most lecture notes,
#
# $$dW = \frac{\partial J}{\partial W}, \quad db = \frac{\partial J}{\partial b},
# \qquad\text{but}\qquad
# dZ = m\,\frac{\partial J}{\partial Z} = \frac{\partial}{\partial Z} \sum_n \ell_n, \quad
# dA = m\,\frac{\partial J}{\partial A}.$$
#
# So column $n$ of $dZ$ is the error of example $n$ alone, without $1/m$.


# %%
def judge_cost(W, b, at_Z, at_A, X, Y):
    """J, with zeros added at each Z and A; also all Z and A. Uses jax.nn and optax alone."""
    L = len(W)
    hidden = {1: jax.nn.tanh, 2: jax.nn.sigmoid}
    Z, A = {}, {0: X + at_A[0]}
    for l in range(1, L + 1):
        Z[l] = W[l] @ A[l - 1] + b[l] + at_Z[l]
        if l < L:
            A[l] = hidden[l](Z[l]) + at_A[l]
    A[L] = jax.nn.softmax(Z[L], axis=0)
    return optax.softmax_cross_entropy(Z[L].T, Y.T).mean(), (Z, A)


@jax.jit
def judge(W, b, X, Y):
    """Every Z, A, dA, dZ, dW, db by autodiff, with dA and dZ in the convention above."""
    L, m = len(W), X.shape[1]
    at_Z = {l: jnp.zeros((W[l].shape[0], m)) for l in W}
    at_A = {l - 1: jnp.zeros((W[l].shape[1], m)) for l in W}
    differentiate = jax.value_and_grad(judge_cost, argnums=(0, 1, 2, 3), has_aux=True)
    (J, (Z, A)), (dW, db, dZ, dA) = differentiate(W, b, at_Z, at_A, X, Y)
    named = {"J": J, "A[0]": A[0], "dA[0]": m * dA[0]}
    for l in range(1, L + 1):
        named |= {f"Z[{l}]": Z[l], f"A[{l}]": A[l], f"dZ[{l}]": m * dZ[l]}
        named |= {f"dW[{l}]": dW[l], f"db[{l}]": db[l]}
        if l < L:
            named[f"dA[{l}]"] = m * dA[l]
    return named


auto = judge(W, b, X, Y)

# %% [markdown]
# Two ways to compute the same number differ by rounding. In double precision each sum or product is
# rounded with a relative error of at most $2^{-53} \approx 1.1 \times 10^{-16}$, and an entry here
# is made of some tens of them. The helper below prints the largest difference and the largest
# value, and fails when their ratio exceeds $10^{-13}$. That leaves room for rounding and none for a
# wrong formula, whose error is usually of the order of the value itself. (Section 9 puts this to
# the test.)

# %%
TOLERANCE = 1e-13


def check(name, manual, autodiff):
    """Compare two arrays, print the result, and fail when they differ by more than rounding."""
    manual, autodiff = np.asarray(manual), np.asarray(autodiff)
    assert manual.shape == autodiff.shape, f"{name}: {manual.shape} is not {autodiff.shape}"
    difference, largest = np.abs(manual - autodiff).max(), np.abs(autodiff).max()
    right = bool(difference <= TOLERANCE * largest)
    verdict = "OK" if right else "WRONG"
    print(f"{name:<8} max |manual - autodiff| = {difference:.0e} of {largest:.2g}  {verdict}")
    assert right, f"{name} is wrong"


check("J", J, auto["J"])
for l in range(1, L + 1):
    check(f"Z[{l}]", Z[l], auto[f"Z[{l}]"])
    check(f"A[{l}]", A[l], auto[f"A[{l}]"])

# %% [markdown]
# ## 2. The output layer: $dZ^{[L]} = A^{[L]} - Y$
#
# **Derivation.** Take the logarithm of softmax before differentiating:
# $\log A_{in} = Z_{in} - \log \sum_c e^{Z_{cn}}$ (all at layer $L$). Then
#
# $$\ell_n = -\sum_i Y_{in} Z_{in} + \Big(\sum_i Y_{in}\Big) \log \sum_c e^{Z_{cn}}.$$
#
# The derivative of $\log \sum_c e^{Z_{cn}}$ with respect to $Z_{in}$ is
# $e^{Z_{in}} / \sum_c e^{Z_{cn}} = A_{in}$. Since $\sum_i Y_{in} = 1$,
#
# $$\frac{\partial \ell_n}{\partial Z_{in}} = A_{in} - Y_{in}.$$
#
# No other example's loss depends on $Z_{in}$, so this is $dZ^{[L]}_{in}$:
#
# $$\boxed{\,dZ^{[L]} = A^{[L]} - Y\,}$$

# %%
dZ = {L: formulas.output_error(A[L], Y)}  # A[L] - Y

check("dZ[3]", dZ[L], auto["dZ[3]"])

# %% [markdown]
# **Why it is so simple, and when.** Suppose that the loss of one example has the form
#
# $$\ell = \psi(z) - \sum_i y_i z_i + \text{const}(y),
# \qquad \frac{\partial \psi}{\partial z_i} = g(z)_i.$$
#
# Then $\partial \ell / \partial z_i = g(z)_i - y_i = a_i - y_i$, whatever $\psi$ is. The output
# activation is the gradient of $\psi$: such an activation and loss are a *canonical pair*.
#
# | output activation $g$ | loss (a negative log-likelihood) | $\psi(z)$ |
# |---|---|---|
# | softmax | cross-entropy (categorical) | $\log \sum_i e^{z_i}$ |
# | sigmoid | binary cross-entropy (Bernoulli) | $\sum_i \log(1 + e^{z_i})$ |
# | identity | half squared error (normal, variance 1) | $\tfrac12 \sum_i z_i^2$ |
# | exponential | Poisson | $\sum_i e^{z_i}$ |
#
# Any other pair needs the activation's derivative in $dZ^{[L]}$ (exercise 2). The judges of the
# three new pairs are the log-likelihoods of `jax.scipy.stats`.

# %%
z = Z[L]
y_binary, y_count = (Y > 0.5).astype(float), jnp.round(3 * Y)
pairs = {
    "sigmoid, Bernoulli": (
        sigma,
        y_binary,
        lambda z: -jax.scipy.stats.bernoulli.logpmf(y_binary, jax.nn.sigmoid(z)).sum(),
    ),
    "identity, normal": (lambda z: z, Y, lambda z: -jax.scipy.stats.norm.logpdf(Y, z).sum()),
    "exp, Poisson": (
        jnp.exp,
        y_count,
        lambda z: -jax.scipy.stats.poisson.logpmf(y_count, jnp.exp(z)).sum(),
    ),
}
for name, (activation, y, total_loss) in pairs.items():
    print(f"{name:<19}", end="")
    check("dZ[3]", formulas.output_error(activation(z), y), jax.jit(jax.grad(total_loss))(z))

# %% [markdown]
# ## 3. The activation: why the product is element-wise
#
# Let $dA^{[l]}$ be known, and ask for $dZ^{[l]}$. For one example (index $n$ left out), the chain
# rule sums over every unit $k$ that $Z_i$ could reach:
#
# $$dZ_i = \sum_k dA_k \frac{\partial A_k}{\partial Z_i}.$$
#
# A hidden activation acts on each unit alone: $A_k = g(Z_k)$. Its Jacobian is diagonal,
#
# $$\frac{\partial A_k}{\partial Z_i} = g'(Z_i)\, \delta_{ki},$$
#
# and one term of the sum is left: $dZ_i = dA_i\, g'(Z_i)$. Multiplying by a diagonal matrix scales
# each entry. That is all that the element-wise product means:
#
# $$dZ^{[l]} = dA^{[l]} \odot g'^{[l]}\big(Z^{[l]}\big).$$
#
# Softmax is not of this kind. Each output depends on every input through the denominator:
#
# $$\frac{\partial A_k}{\partial Z_i} = A_k\,(\delta_{ki} - A_i).$$
#
# Its Jacobian is dense, so there is no "$g'$" to multiply by. Section 2 went round it by
# differentiating loss and softmax as one. The long way must give the same: with $dA_k = -Y_k / A_k$
# from the loss,
#
# $$dZ_i = \sum_k \Big(-\frac{Y_k}{A_k}\Big) A_k (\delta_{ki} - A_i)
# = -Y_i + A_i \sum_k Y_k = A_i - Y_i.$$

# %%
z = Z[1][:, 0]  # six pre-activations of one example
jacobian = {
    "tanh": jax.jit(jax.jacobian(jax.nn.tanh))(z),
    "softmax": jax.jit(jax.jacobian(jax.nn.softmax))(z),
}
a = softmax(z)
check("J tanh", jnp.diag(g_prime[1](z)), jacobian["tanh"])
check("J softm.", a[:, None] * (jnp.eye(6) - a[None, :]), jacobian["softmax"])

dA_example = jnp.array(np.random.default_rng(1).normal(size=6))
check("dA g'", dA_example * g_prime[1](z), jacobian["tanh"].T @ dA_example)


@jax.jit
@partial(jax.vmap, in_axes=1, out_axes=1)
def the_long_way(z, y):
    """The Jacobian of softmax, transposed, times the error that arrives from -sum(y log a)."""
    return jax.jacobian(jax.nn.softmax)(z).T @ (-y / jax.nn.softmax(z))


check("dZ[3]", dZ[L], the_long_way(Z[L], Y))

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.5, 4.4))
titles = {
    "tanh": "tanh acts on each unit alone",
    "softmax": "softmax mixes all units",
}
for axis, (name, matrix) in zip(axes, jacobian.items(), strict=True):
    bound = float(jnp.abs(matrix).max())
    image = axis.imshow(matrix, cmap="RdBu_r", vmin=-bound, vmax=bound)
    for (row, column), value in np.ndenumerate(np.asarray(matrix)):
        ink = "white" if abs(value) > 0.6 * bound else "black"
        text = "0" if value == 0 else f"{value:.2f}".replace("-", "−")
        axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=9)
    axis.set(xlabel="input unit $i$", ylabel="output unit $k$", title=titles[name])
    axis.set_xticks(range(6), range(1, 7))
    axis.set_yticks(range(6), range(1, 7))
    axis.spines[:].set_visible(False)
    fig.colorbar(image, ax=axis, shrink=0.85, pad=0.04, label=r"$\partial A_k / \partial Z_i$")
fig.suptitle("An element-wise activation has a diagonal Jacobian, softmax a dense one")
plt.show()

# %% [markdown]
# The off-diagonal of tanh is exactly zero. A matrix of $n^2$ numbers is replaced by its $n$
# diagonal entries; there is no need to build it.
#
# ## 4. The weights, backward: why the transpose
#
# **The index sum.** Let $dZ^{[l+1]}$ be known, and ask for $dA^{[l]}$. Let $k$ count units of layer
# $l+1$ and $i$ units of layer $l$. Forward, the sum runs over $i$:
#
# $$Z^{[l+1]}_{kn} = \sum_i W^{[l+1]}_{ki} A^{[l]}_{in} + b^{[l+1]}_k
# \qquad\Longrightarrow\qquad
# \frac{\partial Z^{[l+1]}_{kn}}{\partial A^{[l]}_{in}} = W^{[l+1]}_{ki}.$$
#
# Unit $i$ feeds every unit $k$ of the next layer, so its error collects from all of them. Backward,
# the sum runs over $k$:
#
# $$dA^{[l]}_{in} = \sum_k \frac{\partial Z^{[l+1]}_{kn}}{\partial A^{[l]}_{in}}\, dZ^{[l+1]}_{kn}
# = \sum_k W^{[l+1]}_{ki}\, dZ^{[l+1]}_{kn}.$$
#
# The same matrix, summed over its *first* index instead of its second. To write that as a matrix
# product, the summed index must come second, hence the transpose:
# $dA^{[l]} = W^{[l+1]\mathsf T} dZ^{[l+1]}$.
#
# **The shapes** agree: $(n_l, n_{l+1})\,(n_{l+1}, m) \to (n_l, m)$, the shape of $A^{[l]}$. Shapes
# are a good mnemonic and no proof: between layers of equal size $W\,dZ$ fits as well, and is wrong.
#
# With section 3 this is the error of a hidden layer:
#
# $$\boxed{\,dZ^{[l]} = W^{[l+1]\mathsf T}\, dZ^{[l+1]} \odot g'^{[l]}\big(Z^{[l]}\big)\,}$$

# %%
dA = {}
for l in (2, 1):
    dA[l] = W[l + 1].T @ dZ[l + 1]
    dZ[l] = formulas.hidden_error(W[l + 1], dZ[l + 1], Z[l], g_prime[l])  # Wᵀ dZ * g'(Z)

    print(f"{W[l + 1].T.shape} @ {dZ[l + 1].shape} -> {dA[l].shape}")
    index_sum = np.zeros(dA[l].shape)
    for k, i, n in np.ndindex(*W[l + 1].shape, m):  # the sum of the derivation, term by term
        index_sum[i, n] += W[l + 1][k, i] * dZ[l + 1][k, n]
    np.testing.assert_allclose(dA[l], index_sum, rtol=1e-12, atol=1e-15)

    check(f"dA[{l}]", dA[l], auto[f"dA[{l}]"])
    check(f"dZ[{l}]", dZ[l], auto[f"dZ[{l}]"])

check("dA[0]", W[1].T @ dZ[1], auto["dA[0]"])  # the error of the input, by the same formula

# %% [markdown]
# ## 5. The parameters: $dW^{[l]}$ and $db^{[l]}$
#
# **Weights.** $W_{ij}$ enters $Z_{in} = \sum_j W_{ij} A^{[l-1]}_{jn} + b_i$ of its own row $i$, for
# *every* example $n$, with $\partial Z_{in} / \partial W_{ij} = A^{[l-1]}_{jn}$. The chain rule
# sums over all the places where it is used:
#
# $$dW^{[l]}_{ij} = \sum_n \frac{\partial J}{\partial Z^{[l]}_{in}}
# \frac{\partial Z^{[l]}_{in}}{\partial W^{[l]}_{ij}}
# = \frac1m \sum_n dZ^{[l]}_{in}\, A^{[l-1]}_{jn}
# \qquad\Longrightarrow\qquad \boxed{\,dW^{[l]} = \frac1m\, dZ^{[l]} A^{[l-1]\mathsf T}\,}$$
#
# Again the transpose only puts the summed index, now the example $n$, where a matrix product wants
# it. Each example contributes an outer product, error times input, of rank one.

# %%
dW = {}
for l in range(1, L + 1):
    dW[l] = formulas.weight_gradient(dZ[l], A[l - 1])  # (1/m) dZ A_prevᵀ
    check(f"dW[{l}]", dW[l], auto[f"dW[{l}]"])

outer_products = [jnp.outer(dZ[2][:, n], A[1][:, n]) for n in range(m)]
check("Σ outer", sum(outer_products) / m, auto["dW[2]"])  # dW[2], example by example

# %% [markdown]
# **Bias.** $b_i$ enters the same $Z_{in}$, for every $n$, with
# $\partial Z_{in} / \partial b_i = 1$. Forward, one column $b$ is copied to all $m$ examples;
# backward, the $m$ errors are added up:
#
# $$db^{[l]}_i = \frac1m \sum_n dZ^{[l]}_{in}
# \qquad\Longrightarrow\qquad \boxed{\,db^{[l]} = \frac1m \sum_{\text{examples}} dZ^{[l]}\,}$$
#
# The bias is a weight on an input that is always 1: put $A^{[l-1]}_{jn} = 1$ in the formula for
# $dW$.

# %%
db = {}
for l in range(1, L + 1):
    db[l] = formulas.bias_gradient(dZ[l])  # (1/m) sum over examples
    check(f"db[{l}]", db[l], auto[f"db[{l}]"])

check("dW of 1", formulas.weight_gradient(dZ[2], jnp.ones((1, m))), auto["db[2]"])  # also db[2]

# %% [markdown]
# **Update.** To first order, a step $-\eta\,(dW, db)$ changes the cost by
# $-\eta \sum \big(dW^2 + db^2\big) \le 0$:
#
# $$\boxed{\,W^{[l]} \leftarrow W^{[l]} - \eta\, dW^{[l]},
# \qquad b^{[l]} \leftarrow b^{[l]} - \eta\, db^{[l]}\,}$$
#
# The judge is `optax.sgd`, fed with autodiff's gradient.

# %%
rate = 0.01
gradient = {"W": dW, "b": db}
moved = {
    name: {l: formulas.gradient_descent_update(values[l], gradient[name][l], rate) for l in values}
    for name, values in {"W": W, "b": b}.items()
}

optimizer = optax.sgd(rate)
auto_gradient = {n: {l: auto[f"d{n}[{l}]"] for l in W} for n in ("W", "b")}
updates, _ = optimizer.update(auto_gradient, optimizer.init({"W": W, "b": b}))
for l in W:
    check(f"W[{l}]", moved["W"][l], W[l] + updates["W"][l])
    check(f"b[{l}]", moved["b"][l], b[l] + updates["b"][l])

squared_norm = sum(float((each**2).sum()) for each in jax.tree.leaves(gradient))
new_J = judge(moved["W"], moved["b"], X, Y)["J"]
print(f"J falls by {J - new_J:.5f}; to first order by {rate * squared_norm:.5f}")
assert abs((J - new_J) / (rate * squared_norm) - 1) < 0.02

# %% [markdown]
# ## 6. Where $1/m$ belongs
#
# The cost is a mean, so $1/m$ must enter once. Every step back, $W^{\mathsf T}(\cdot)$,
# $(\cdot) \odot g'$, $(\cdot) A^{\mathsf T}$ and the sum, is linear in the error that it is given.
# A constant factor therefore passes through unchanged, and there are two right places for it:
#
# - **at the end**, in $dW$ and $db$, as in the notes. Then $dZ$ is free of it, and column $n$ is
#   the error of example $n$, whatever else is in the batch;
# - **at the start**, in $dZ^{[L]}$. Then every $dv$ is $\partial J / \partial v$ as it stands. The
#   engine of `manual_bp` does this: the factor becomes a weight $w_n$ of each example, $1/m$ unless
#   one asks for others.
#
# At both places the gradient is $m$ times too small, at neither $m$ times too large. With plain
# gradient descent that changes the learning rate by a factor $m$. Adam divides the gradient by its
# own size and hides the mistake almost wholly: such a network trains, and its gradient is wrong.
#
# The engine puts examples first: its arrays are the transposes of the notes'.


# %%
@jax.jit
def by_formulas(X, Y):
    """dZ, dW and db of any batch: forward, then backward."""
    Z, A = formulas.forward_pass(W, b, X, g)
    return formulas.backward_pass(W, Z, A, Y, g_prime)


# At the end: the error of an example doesn't depend on the rest of the batch.
dZ_alone, _, _ = by_formulas(X[:, 3:4], Y[:, 3:4])
check("dZ[1]", dZ_alone[1], auto["dZ[1]"][:, 3:4])

# Every example twice: the mean, and so dW, stays the same.
_, dW_twice, _ = by_formulas(np.hstack([X, X]), np.hstack([Y, Y]))
check("dW[1]", dW_twice[1], auto["dW[1]"])

# At the start: the engine. Weights of 1 give the notes' dZ.
network = mbp.sequential(mbp.Dense(6, mbp.tanh), mbp.Dense(5, mbp.sigmoid), mbp.Dense(3))
params = tuple((W[l], b[l][:, 0]) for l in range(1, L + 1))
steps = mbp.intermediates(params, X.T, Y.T, network=network)
unweighted = mbp.intermediates(params, X.T, Y.T, network=network, weights=jnp.ones(m))
check("dZ[1]/m", steps["dZ1"].T, auto["dZ[1]"] / m)
check("dZ[1]", unweighted["dZ1"].T, auto["dZ[1]"])
check("dW[1]", steps["dW1"], auto["dW[1]"])
check("m dW[1]", unweighted["dW1"], m * auto["dW[1]"])

# %% [markdown]
# ## 7. Every intermediate, by hand and by autodiff
#
# Now all at once. `formulas.backward_pass` is the loop of sections 2 to 5: the first derivation, in
# the layout of the notes. The engine, `mbp.intermediates`, is a second one, with examples first and
# $1/m$ at the start. Autodiff judges both. Differences are relative to the largest entry.

# %%
dZ, dW, db = formulas.backward_pass(W, Z, A, Y, g_prime)
notes = {"A[0]": A[0], "dA[0]": W[1].T @ dZ[1]}
engine = {"A[0]": steps["A0"].T, "dA[0]": m * steps["dA0"].T}
for l in range(1, L + 1):
    notes |= {f"Z[{l}]": Z[l], f"A[{l}]": A[l], f"dZ[{l}]": dZ[l]}
    notes |= {f"dW[{l}]": dW[l], f"db[{l}]": db[l]}
    engine |= {f"Z[{l}]": steps[f"Z{l}"].T, f"A[{l}]": steps[f"A{l}"].T}
    engine |= {f"dZ[{l}]": m * steps[f"dZ{l}"].T, f"dW[{l}]": steps[f"dW{l}"]}
    engine[f"db[{l}]"] = steps[f"db{l}"][:, None]
    if l < L:
        notes[f"dA[{l}]"] = W[l + 1].T @ dZ[l + 1]
        engine[f"dA[{l}]"] = m * steps[f"dA{l}"].T


def relative_difference(value, reference):
    """The largest difference, over the largest entry of the reference."""
    return float(jnp.abs(value - reference).max() / jnp.abs(reference).max())


forward_order = ["A[0]"] + [f"{kind}[{l}]" for l in range(1, L + 1) for kind in "ZA"]
backward_order = ["dZ[3]", "dW[3]", "db[3]"]
for l in (2, 1):
    backward_order += [f"dA[{l}]", f"dZ[{l}]", f"dW[{l}]", f"db[{l}]"]

print("                             relative difference to autodiff")
print("name     shape     largest       notes       engine")
for name in [*forward_order, *backward_order, "dA[0]"]:
    of_notes, of_engine = (relative_difference(v[name], auto[name]) for v in (notes, engine))
    right = of_notes <= TOLERANCE and of_engine <= TOLERANCE
    shape = "({}, {})".format(*auto[name].shape)
    largest = float(jnp.abs(auto[name]).max())
    verdict = "OK" if right else "WRONG"
    print(
        f"{name:<7}  {shape:<8} {largest:>7.3f}     {of_notes:.1e}     {of_engine:.1e}  {verdict}"
    )
    assert right, name
assert set(notes) == set(engine) == set(auto) - {"J"}

# %% [markdown]
# ## 8. How close, and against what
#
# ### Scatter
#
# Every entry of the gradient of a larger network, by hand against by autodiff, in single and in
# double precision. Points on the diagonal agree. The right panel shows what the left one cannot
# resolve: how far off the diagonal they are. Differences shrink by the ratio of the two precisions,
# about $5 \times 10^8$. A wrong formula would be equally wrong in both; rounding is not.


# %%
def mlp_cost(params, x, y):
    """The mean cross-entropy of a tanh network, by jax.nn and optax; examples first."""
    for W, b in params[:-1]:
        x = jax.nn.tanh(x @ W.T + b)
    W, b = params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(x @ W.T + b, y).mean()


larger = mbp.mlp([20, 30, 25, 10], hidden=mbp.tanh)
W64, b64, X64, Y64 = draw((20, 30, 25, 10), 40, seed=2)
x64, y64 = X64.T, Y64.argmax(axis=0)
params64 = tuple((W64[l], b64[l][:, 0]) for l in W64)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.3))
for dtype, colour in ((jnp.float32, ORANGE), (jnp.float64, BLUE)):
    given, x = jax.tree.map(lambda each: each.astype(dtype), (params64, x64))
    by_hand = mbp.manual_grads(given, x, y64, network=larger)
    by_autodiff = jax.jit(jax.grad(mlp_cost))(given, x, y64)
    u, v = (
        np.concatenate([np.ravel(each) for each in jax.tree.leaves(grads)])
        for grads in (by_hand, by_autodiff)
    )
    size, difference = np.abs(v).max(), np.abs(u - v)
    assert difference.max() <= 64 * jnp.finfo(dtype).eps * size
    name = dtype.__name__
    print(
        f"{name}: {u.size} entries, largest {size:.2g}, largest difference {difference.max():.1e}"
    )
    if dtype == jnp.float64:
        left.plot(v, u, ".", color=BLUE, markersize=4, alpha=0.5)
    seen = difference > 0
    label = f"{name}: {np.mean(~seen):.0%} identical, not shown"
    right.loglog(
        np.abs(v[seen]), difference[seen], ".", color=colour, markersize=3, alpha=0.5, label=label
    )
    right.axhline(jnp.finfo(dtype).eps * size, color=colour, linewidth=1, linestyle="--")
    place = (1.3e-5, 1.6 * jnp.finfo(dtype).eps * size)
    right.text(*place, f"ε of {name} × largest entry", color="#333333", fontsize=9)
bound = 1.05 * np.abs(v).max()
left.plot([-bound, bound], [-bound, bound], color=GREY, linewidth=1, zorder=0)
left.set(
    xlabel="gradient entry by autodiff", ylabel="gradient entry by hand", title="float64", aspect=1
)
right.set(
    xlabel="|gradient entry|", ylabel="|by hand − autodiff|", title="distance from the diagonal"
)
right.set_ylim(1e-21, 1e-3)
right.legend(loc="upper left", fontsize=9, markerscale=3, handletextpad=0.1)
fig.suptitle("The gradient by hand is autodiff's gradient, up to rounding")
plt.show()

# %% [markdown]
# ### Error against depth and width
#
# Does the difference grow with the network? We compare `formulas.backward_pass` with autodiff for
# tanh networks of several depths and widths, ten random draws of each. The measure is the relative
# difference of section 7, the worst over all $dW^{[l]}$ and $db^{[l]}$.


# %%
def deep_cost(W, b, X, Y):
    """The mean cross-entropy of a tanh network of any depth; features x examples."""
    A = X
    for l in range(1, len(W)):
        A = jax.nn.tanh(W[l] @ A + b[l])
    return optax.softmax_cross_entropy((W[len(W)] @ A + b[len(W)]).T, Y.T).mean()


def worst_difference(W, b, X, Y):
    """The worst relative difference over all dW and db."""
    L = len(W)
    activations = dict.fromkeys(range(1, L), jnp.tanh) | {L: softmax}
    derivatives = dict.fromkeys(range(1, L), lambda z: 1 - jnp.tanh(z) ** 2)
    Z, A = formulas.forward_pass(W, b, X, activations)
    _, *manual = formulas.backward_pass(W, Z, A, Y, derivatives)
    autodiff = jax.grad(deep_cost, argnums=(0, 1))(W, b, X, Y)
    ratios = jax.tree.map(
        lambda u, v: jnp.abs(u - v).max() / jnp.abs(v).max(), tuple(manual), autodiff
    )
    return jnp.stack(jax.tree.leaves(ratios)).max()


def over_draws(depth, width, draws=10):
    """Ten draws at once, by vmap: (draws,) worst differences."""
    batches = [draw((width,) * (depth + 1), 8, seed) for seed in range(draws)]
    stacked = jax.tree.map(lambda *each: np.stack(each), *batches)
    return np.asarray(jax.jit(jax.vmap(worst_difference))(*stacked))


depths, widths = (1, 2, 4, 8, 16, 32), (4, 16, 64, 256)
by_depth = {depth: over_draws(depth, 16) for depth in depths}
by_width = {width: by_depth[4] if width == 16 else over_draws(4, width) for width in widths}

fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
panels = (("depth (layers of 16 units)", by_depth), ("width (units in each of 4 layers)", by_width))
for axis, (label, results) in zip(axes, panels, strict=True):
    places = list(results)
    for place, values in results.items():
        axis.plot([place] * len(values), values, "o", color=BLUE, markersize=4, alpha=0.4)
    axis.plot(places, [np.median(v) for v in results.values()], color=BLUE, label="median of 10")
    axis.axhline(np.finfo(float).eps, color=GREY, linestyle="--", linewidth=1)
    axis.text(places[-1], 1.12 * np.finfo(float).eps, "ε", color="#333333", ha="right", va="bottom")
    axis.axhline(TOLERANCE, color=RED, linewidth=1)
    axis.text(places[-1], 0.85 * TOLERANCE, "tolerance", color=RED, ha="right", va="top")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(places, places)
    axis.set(xlabel=label, ylim=(5e-17, 3e-13))
axes[0].set_ylabel("worst relative difference\nby hand to autodiff")
axes[0].legend(loc="center left")
fig.suptitle("Rounding accumulates with depth, and hardly with width")
plt.show()

worst = max(values.max() for values in (*by_depth.values(), *by_width.values()))
print(f"worst of all: {worst:.1e}")
assert worst < TOLERANCE

# %% [markdown]
# ### Finite differences: the V-curve
#
# Both derivations and autodiff rest on the chain rule. Finite differences do not; they only
# evaluate $J$. Take a random direction $V$ in the space of all parameters $\theta$ and compare
# $\langle \text{gradient}, V \rangle$ with
#
# $$\frac{J(\theta + hV) - J(\theta)}{h}
# \quad\text{and}\quad
# \frac{J(\theta + hV) - J(\theta - hV)}{2h}.$$
#
# Taylor's theorem gives truncation errors of $\tfrac{h}{2} |J''|$ and $\tfrac{h^2}{6} |J'''|$.
# Rounding in $J$ adds about $\varepsilon |J| / h$, which grows as $h$ shrinks. The sum is a V in
# logarithmic axes. With derivatives of order one, its lowest point is near
# $h = \varepsilon^{1/2} \approx 10^{-8}$ with an error of about $10^{-8}$, or near
# $h = \varepsilon^{1/3} \approx 10^{-5}$ with about $10^{-11}$.
#
# The left arm is cancellation. It is absent from the *complex step*: $J$ is analytic here, so
#
# $$\operatorname{Im} J(\theta + \mathrm{i} h V) / h
# = \langle \text{gradient}, V \rangle + O(h^2),$$
#
# and nothing is subtracted: the step may be as small as one likes. Here $J$ is computed by NumPy,
# so that this judge shares neither the chain rule nor JAX with the other two. (A difference of
# exactly 0 is drawn at $2.8 \times 10^{-17}$, the lowest value in the plot.)

# %%
rng = np.random.default_rng(3)
theta = {l: (np.asarray(W[l]), np.asarray(b[l])) for l in W}
V = {l: tuple(rng.normal(size=each.shape) for each in pair) for l, pair in theta.items()}
g_numpy = {1: np.tanh, 2: lambda z: 1 / (1 + np.exp(-z)), 3: lambda z: z}


def cost_along(t):
    """J at theta + t V, for a real or complex t, by NumPy alone."""
    W_t = {l: theta[l][0] + t * V[l][0] for l in theta}
    b_t = {l: theta[l][1] + t * V[l][1] for l in theta}
    Z, _ = formulas.forward_pass(W_t, b_t, np.asarray(X), g_numpy)
    log_A = Z[L] - np.log(np.exp(Z[L]).sum(axis=0))
    return -(np.asarray(Y) * log_A).sum(axis=0).mean()


def along(gradient):
    """<gradient, V>."""
    return sum(float((gradient[n][l] * V[l][i]).sum()) for l in W for i, n in enumerate("Wb"))


slope = along({"W": dW, "b": db})
h = np.logspace(-16, -1, 91)
estimates = {
    "forward difference": [(cost_along(t) - cost_along(0)) / t for t in h],
    "central difference": [(cost_along(t) - cost_along(-t)) / (2 * t) for t in h],
    "complex step": [cost_along(1j * t).imag / t for t in h],
}
limits = {"forward difference": 1e-6, "central difference": 1e-9, "complex step": 1e-14}
floor = np.finfo(float).eps / 8  # where a difference of exactly 0 is drawn
fig, axis = plt.subplots(figsize=(8.5, 4.6))
for (name, values), colour in zip(estimates.items(), (ORANGE, BLUE, GREEN), strict=True):
    error = np.abs(np.array(values) - slope) / abs(slope)
    axis.loglog(h, np.maximum(error, floor), ".-", color=colour, label=name, markersize=4, lw=1)
    best = error.argmin()
    print(f"{name}: smallest relative error {error[best]:.0e} at h = {h[best]:.0e}")
    assert error[best] < limits[name]
by_autodiff = abs(along(auto_gradient) - slope) / abs(slope)
axis.axhline(max(by_autodiff, floor), color=RED, linestyle="--", linewidth=1.2, label="autodiff")
axis.text(2e-12, 1e-2, "rounding ∝ ε / h")
axis.text(1e-5, 3e-4, "truncation ∝ h", ha="right")
axis.text(4e-4, 1e-8, "truncation ∝ h²")
axis.set(xlabel="step $h$", ylabel="relative difference to\nthe gradient by hand, along $V$")
axis.legend(loc="upper center", ncols=4, fontsize=9.5, bbox_to_anchor=(0.5, 1.12), columnspacing=1)
fig.suptitle("Finite differences confirm the gradient as far as they can see")
plt.show()
print(f"autodiff: relative difference {by_autodiff:.0e}")
assert by_autodiff < TOLERANCE

# %% [markdown]
# ## 9. Formulas broken on purpose
#
# A check that has never failed proves little. Here are twenty wrong backward passes, each with one
# mistake that people make. Each is run on two networks. In the first one every size, and $m$ too,
# is 5: nothing can fail to fit, and only numbers can tell. The second has the sizes of section 1,
# which all differ.
#
# Intermediates stand in backward order. The first wrong one is where the mistake was made; what
# follows inherits it.

# %%
RIGHT = {
    "output": lambda c: c.A[c.L] - c.Y,
    "dA": lambda c, l: c.W[l + 1].T @ c.dZ[l + 1],
    "dZ": lambda c, l: c.dA[l] * c.g_prime[l](c.Z[l]),
    "dW": lambda c, l: c.dZ[l] @ c.A[l - 1].T / c.m,
    "db": lambda c, l: c.dZ[l].sum(axis=1, keepdims=True) / c.m,
}

BROKEN = {
    "dZ[L]: Y - A, the sign": {"output": lambda c: c.Y - c.A[c.L]},
    "dZ[L]: A, the label not subtracted": {"output": lambda c: c.A[c.L]},
    "dZ[L]: softmax as if element-wise": {
        "output": lambda c: -c.Y / c.A[c.L] * c.A[c.L] * (1 - c.A[c.L])
    },
    "dZ[L]: softmax over the examples": {"output": lambda c: softmax(c.Z[c.L].T).T - c.Y},
    "dZ[L]: 1/m here and in dW, db": {"output": lambda c: (c.A[c.L] - c.Y) / c.m},
    "dA: W dZ, no transpose": {"dA": lambda c, l: c.W[l + 1] @ c.dZ[l + 1]},
    "dA: W of this layer, not the next": {"dA": lambda c, l: c.W[l].T @ c.dZ[l + 1]},
    "dA: always from dZ[L]": {"dA": lambda c, l: c.W[l + 1].T @ c.dZ[c.L]},
    "dZ: g' left out": {"dZ": lambda c, l: c.dA[l]},
    "dZ: g'(A), not g'(Z)": {"dZ": lambda c, l: c.dA[l] * c.g_prime[l](c.A[l])},
    "dZ: g, not g'": {"dZ": lambda c, l: c.dA[l] * c.g[l](c.Z[l])},
    "dZ: g' at Z of the next layer": {"dZ": lambda c, l: c.dA[l] * c.g_prime[l](c.Z[l + 1])},
    "dZ: g' before Wᵀ, not after": {
        "dZ": lambda c, l: c.W[l + 1].T @ (c.dZ[l + 1] * c.g_prime[l](c.Z[l]))
    },
    "dW: 1/m missing": {"dW": lambda c, l: c.dZ[l] @ c.A[l - 1].T},
    "dW: 1/n, not 1/m": {"dW": lambda c, l: c.dZ[l] @ c.A[l - 1].T / c.dZ[l].shape[0]},
    "dW: A[l], not A[l-1]": {"dW": lambda c, l: c.dZ[l] @ c.A[l].T / c.m},
    "dW: A dZᵀ, transposed": {"dW": lambda c, l: c.A[l - 1] @ c.dZ[l].T / c.m},
    "dW: dZᵀ A, sums over units": {"dW": lambda c, l: c.dZ[l].T @ c.A[l - 1] / c.m},
    "db: mean over the units": {"db": lambda c, l: c.dZ[l].mean(axis=0)[:, None]},
    "db: not summed": {"db": lambda c, l: c.dZ[l] / c.m},
}


class Case:
    """A network, a batch, and its forward pass: what a backward pass may use."""

    def __init__(self, sizes, m, seed):
        self.L, self.m, self.g, self.g_prime = len(sizes) - 1, m, g, g_prime
        self.W, self.b, self.X, self.Y = draw(sizes, m, seed)
        self.Z, self.A = formulas.forward_pass(self.W, self.b, self.X, g)
        self.auto = judge(self.W, self.b, self.X, self.Y)
        self.dZ, self.dA = {}, {}


def backward(case, wrong):
    """Every intermediate in backward order, with one formula replaced; stops where JAX raises."""
    rules, found, case.dZ, case.dA = RIGHT | wrong, {}, {}, {}
    try:
        for l in range(case.L, 0, -1):
            if l == case.L:
                case.dZ[l] = rules["output"](case)
            else:
                case.dA[l] = found[f"dA[{l}]"] = rules["dA"](case, l)
                case.dZ[l] = rules["dZ"](case, l)
            found[f"dZ[{l}]"] = case.dZ[l]
            found[f"dW[{l}]"] = rules["dW"](case, l)
            found[f"db[{l}]"] = rules["db"](case, l)
    except TypeError:  # JAX: shapes don't fit
        pass
    return found


AGREES, DIFFERS, MISFITS, NOT_REACHED = range(4)


def verdicts(case, wrong):
    """One verdict for each intermediate, in backward order."""
    found, row = backward(case, wrong), []
    for name in backward_order:
        value, right = found.get(name), case.auto[name]
        if value is None:  # the formula of the first missing one raised, the others are not reached
            first_missing = len(row) == len(found)
            row.append(MISFITS if first_missing else NOT_REACHED)
        elif value.shape != right.shape:
            row.append(MISFITS)
        else:
            row.append(AGREES if relative_difference(value, right) <= TOLERANCE else DIFFERS)
    return row


cases = {
    "every size is 5, and m = 5": Case((5, 5, 5, 5), 5, seed=4),
    "sizes 4, 6, 5, 3, and m = 7": Case(sizes, m, seed=5),
}
panel = {
    title: np.array([verdicts(case, wrong) for wrong in ({}, *BROKEN.values())])
    for title, case in cases.items()
}

print(f"{'broken formula':<36} {'first wrong, all sizes 5':<26} first wrong, sizes differ")
for row, name in enumerate(BROKEN, start=1):
    firsts = []
    for table in panel.values():
        bad = np.flatnonzero(table[row] != AGREES)
        kind = "shape" if bad.size and table[row][bad[0]] == MISFITS else "value"
        firsts.append(f"{backward_order[bad[0]]} ({kind})" if bad.size else "none: not caught")
    print(f"{name:<36} {firsts[0]:<26} {firsts[1]}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(12, 7.4), sharey=True)
labels = ["nothing broken", *BROKEN]
colours = {AGREES: GREEN, DIFFERS: RED, MISFITS: "#7A1F2E", NOT_REACHED: "#C9C9C9"}
marks = {AGREES: "✓", DIFFERS: "✗", MISFITS: "shape", NOT_REACHED: ""}
for axis, (title, table) in zip(axes, panel.items(), strict=True):
    axis.imshow(table, cmap=ListedColormap(colours.values()), vmin=0, vmax=3, aspect="auto")
    for (row, column), verdict in np.ndenumerate(table):
        size = 8 if verdict == MISFITS else 10
        text = axis.text(column, row, marks[verdict], color="white", fontsize=size)
        text.set(ha="center", va="center")
    for row, verdict_row in enumerate(table):
        bad = np.flatnonzero(verdict_row != AGREES)
        if bad.size:
            frame = plt.Rectangle((bad[0] - 0.5, row - 0.5), 1, 1, fill=False, ec="black", lw=1.8)
            frame.set_zorder(3)
            axis.add_patch(frame)
    axis.set_xticks(np.arange(12) - 0.5, minor=True)
    axis.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.2)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    axis.set_xticks(range(11), backward_order, rotation=90, family="monospace", fontsize=9.5)
    axis.set_title(title)
axes[0].set_yticks(range(len(labels)), labels, fontsize=10)
for axis in axes:
    axis.set_xlabel("intermediate, in backward order")
names = ("agrees with autodiff", "wrong value", "wrong shape, or does not fit", "not reached")
key = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
key.append(plt.Rectangle((0, 0), 1, 1, fill=False, ec="black", lw=1.8))
fig.legend(key, [*names, "first wrong"], loc="outside lower center", ncols=5, fontsize=10)
fig.suptitle("Every broken formula turns a check red")
plt.show()

square, unequal = panel.values()
caught = (square != AGREES) | (unequal != AGREES)
assert not caught[0].any(), "the right formulas must pass"
assert caught[1:].any(axis=1).all(), "every broken formula must be caught"
assert (unequal[1:] != AGREES).any(axis=1).all()
hidden = [labels[row] for row in range(1, len(labels)) if (square[row] == AGREES).all()]
print("hidden where every size is 5:", hidden)
assert hidden == ["dW: 1/n, not 1/m"]

# %% [markdown]
# Three things to read off.
#
# - With unequal sizes half of the mistakes announce themselves by a shape: it does not fit, or is
#   not that of the parameter. With equal sizes all of these but one keep the right shapes, and only
#   values tell.
# - One mistake is invisible where all sizes are 5: dividing by $n$ instead of $m$ is right when
#   $n = m$. Other easy choices blind a test in the same way. With one example, no mistake in $1/m$
#   shows. With relu units that are all active, $g' = 1$, and leaving it out changes nothing. So a
#   test needs unequal sizes, several examples, and random values everywhere.
# - A mistake in $dW$ or $db$ stays where it is. A mistake in $dA$ or $dZ$ spoils everything below.
#   So the first wrong intermediate, not the number of wrong ones, leads to the cause.
#
# ## 10. How errors vanish or explode with depth
#
# Follow the size of the error down a deep network. Let the entries of $W$ be independent with mean
# 0 and variance $\sigma^2 / n$, $n$ the width. Take the mean square of
# $dZ^{[l]}_i = g'(Z^{[l]}_i) \sum_k W_{ki}\, dZ^{[l+1]}_k$ as if $W$ on the way back were
# independent of the forward pass, and $g'$ of the errors (an approximation, good for wide layers).
# The $n$ terms of the sum are then uncorrelated, and
#
# $$\big\langle (dZ^{[l]})^2 \big\rangle
# \approx \sigma^2 \big\langle g'(Z^{[l]})^2 \big\rangle\, \big\langle (dZ^{[l+1]})^2 \big\rangle.$$
#
# Each layer multiplies the mean square by $\chi = \sigma^2 \langle g'^2 \rangle$. For relu with
# zero bias, half of the $g'$ are 1 and half 0, and $\chi = \sigma^2 / 2$ at any depth: errors
# shrink or grow exponentially unless $\sigma^2 = 2$, the initialisation of He. For sigmoid
# $g' \le \tfrac14$, hence $\chi \le \tfrac1{16}$ with $\sigma^2 = 1$: the root mean square loses at
# least a factor of 4 with every layer.
#
# (The formulas of `manual_bp.formulas` are array arithmetic; here they run on NumPy arrays.)

# %%
depth, width, batch = 30, 256, 16
rng = np.random.default_rng(6)
deep_X = rng.normal(size=(width, batch))
deep_Y = np.eye(width)[:, rng.integers(width, size=batch)]
unit = {l: rng.normal(size=(width, width)) / np.sqrt(width) for l in range(1, depth + 1)}
zero_bias = {l: np.zeros((width, 1)) for l in unit}
hidden_activations = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: 1.0 * (z > 0)),
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": (g_numpy[2], lambda z: g_numpy[2](z) * (1 - g_numpy[2](z))),
}


def stable_softmax(z):
    """Softmax of each column; with the maximum subtracted, no exponential overflows."""
    e = np.exp(z - z.max(axis=0))
    return e / e.sum(axis=0)


def error_sizes(activation, variance):
    """Root mean square of dZ[l], for l = 1 ... L-1, with weights of variance / width."""
    value, derivative = hidden_activations[activation]
    deep_W = {l: np.sqrt(variance) * each for l, each in unit.items()}
    below = range(1, depth)
    values = dict.fromkeys(below, value) | {depth: stable_softmax}
    derivatives = dict.fromkeys(below, derivative)
    deep_Z, deep_A = formulas.forward_pass(deep_W, zero_bias, deep_X, values)
    deep_dZ, _, _ = formulas.backward_pass(deep_W, deep_Z, deep_A, deep_Y, derivatives)
    return np.array([np.sqrt(np.mean(deep_dZ[l] ** 2)) for l in below])


layers = np.arange(1, depth)
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2))
for variance, colour, name in ((1, BLUE, ""), (2, GREEN, " (He)"), (3, RED, "")):
    measured = error_sizes("relu", variance)
    theory = (variance / 2) ** ((depth - 1 - layers) / 2)
    left.semilogy(layers, measured / measured[-1], color=colour, label=f"σ² = {variance}{name}")
    left.semilogy(layers, theory, color="black", linestyle=":", linewidth=1.2)
    assert abs(np.log(measured[0] / measured[-1] / theory[0])) < np.log(5)
left.plot([], [], color="black", linestyle=":", label=r"theory, $(\sigma^2/2)^{(L-1-l)/2}$")
left.set(title="relu, three scales of W")
for activation, variance, colour in (
    ("relu", 2, GREEN),
    ("tanh", 1, ORANGE),
    ("sigmoid", 1, PURPLE),
):
    measured = error_sizes(activation, variance)
    label = f"{activation}, σ² = {variance}"
    right.semilogy(layers, measured / measured[-1], color=colour, label=label)
right.set(title="three activations, customary scales")
for axis in (left, right):
    axis.set(xlabel="layer $l$ (the error travels from right to left)", xlim=(1, depth - 1))
    axis.legend(fontsize=9.5)
left.set_ylabel("rms of $dZ^{[l]}$ relative to $dZ^{[L-1]}$")
fig.suptitle("Errors vanish or explode exponentially with depth")
plt.show()

# %% [markdown]
# What vanishes is not only a number in a plot: $dW^{[l]}$ is $dZ^{[l]}$ times the input of the
# layer, so layers that no error reaches do not learn.
#
# ## 11. Training on digits
#
# The last check is use. The 1797 handwritten digits of scikit-learn, 8 × 8 pixels, a network of 64
# tanh units, Adam. The same run twice, from the same parameters, over the same batches: once with
# `mbp.manual_grads`, once with `jax.grad` of a cost written with `jax.nn` and `optax`.

# %%
digits = load_digits()
order = np.random.default_rng(7).permutation(len(digits.target))
images, labels_of = jnp.array(digits.data[order] / 16), jnp.array(digits.target[order])
train_x, test_x = images[:1437], images[1437:]
train_y, test_y = labels_of[:1437], labels_of[1437:]

classifier = mbp.mlp([64, 64, 10], hidden=mbp.tanh)
initial = classifier.init(jax.random.key(1), train_x)
adam = optax.adam(3e-3)
epochs, batch_size = 40, 64
shuffles = np.stack([np.random.default_rng(e).permutation(1437) for e in range(epochs)])
batches = jnp.array(shuffles[:, : 1437 // batch_size * batch_size]).reshape(epochs, -1, batch_size)


@partial(jax.jit, static_argnames="gradient_of")
def train(gradient_of, params):
    """Parameters after all epochs; training cost and test accuracy after each."""

    def step(carry, chosen):
        params, state = carry
        grads = gradient_of(params, train_x[chosen], train_y[chosen])
        updates, state = adam.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, epoch_batches):
        carry, _ = jax.lax.scan(step, carry, epoch_batches)
        logits = mbp.predict(carry[0], test_x, network=classifier)
        accuracy = (logits.argmax(axis=-1) == test_y).mean()
        return carry, (mlp_cost(carry[0], train_x, train_y), accuracy)

    (params, _), curves = jax.lax.scan(epoch, (params, adam.init(params)), batches)
    return params, curves


by_hand = partial(mbp.manual_grads, network=classifier)
trained, (manual_curve, manual_accuracy) = train(by_hand, initial)
_, (auto_curve, auto_accuracy) = train(jax.grad(mlp_cost), initial)
curve_difference = manual_curve - auto_curve
print(
    f"cost after {epochs} epochs: {manual_curve[-1]:.6f} by hand, {auto_curve[-1]:.6f} by autodiff"
)
print(f"largest difference of the two curves: {np.abs(curve_difference).max():.0e}")
print(f"test accuracy: {manual_accuracy[-1]:.1%} by hand, {auto_accuracy[-1]:.1%} by autodiff")
assert np.abs(curve_difference).max() < 1e-9
assert manual_accuracy[-1] > 0.93

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.8))
epoch_numbers = np.arange(1, epochs + 1)
axes[0].semilogy(epoch_numbers, auto_curve, color=ORANGE, linewidth=5, alpha=0.6, label="jax.grad")
axes[0].semilogy(epoch_numbers, manual_curve, color=BLUE, linewidth=1.3, label="manual_grads")
axes[0].set(ylabel="cross-entropy (nats)", title="cost on the training set")
axes[0].legend()
axes[1].plot(epoch_numbers, 1e16 * curve_difference, "o-", color=GREY, markersize=3, linewidth=1)
axes[1].set(ylabel="by hand − by autodiff (10⁻¹⁶ nats)", title="difference of the two costs")
axes[2].plot(epoch_numbers, 100 * auto_accuracy, color=ORANGE, linewidth=5, alpha=0.6)
axes[2].plot(epoch_numbers, 100 * manual_accuracy, color=BLUE, linewidth=1.3)
axes[2].set(ylabel="right (%)", title="accuracy on 360 test digits", ylim=(75, 100))
for axis in axes:
    axis.set(xlabel="epoch", xlim=(0, epochs + 0.5))
fig.suptitle("Two trainings, one curve")
plt.show()

# %% [markdown]
# The two curves lie on one another; their difference is rounding. Below are test digits with what
# the network makes of them: first some that it gets wrong, then some that it gets right.

# %%
probabilities = jax.nn.softmax(mbp.predict(trained, test_x, network=classifier))
predicted, truth = np.asarray(probabilities.argmax(axis=-1)), np.asarray(test_y)
wrong, correct = np.flatnonzero(predicted != truth), np.flatnonzero(predicted == truth)
chosen = np.concatenate([wrong[:4], correct[: 12 - len(wrong[:4])]])
fig, axes = plt.subplots(2, 6, figsize=(10, 4.2))
for axis, index in zip(axes.flat, chosen, strict=True):
    axis.imshow(test_x[index].reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
    right = predicted[index] == truth[index]
    probability = float(probabilities[index].max())
    text = f"{predicted[index]}, " + ("> 99%" if probability > 0.99 else f"{probability:.0%}")
    axis.set_title(
        text if right else f"{text} (is {truth[index]})",
        color="black" if right else RED,
        fontsize=11,
    )
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
fig.suptitle(f"Prediction and its probability; {len(wrong)} of {len(truth)} test digits are wrong")
plt.show()

# %% [markdown]
# ## 12. Exercises
#
# Fill in what is `None` and run the cell. The checker goes through the intermediates in backward
# order and names the first that is wrong, with a hint where it can give one. As committed, nothing
# is filled in. Solutions follow at the end.


# %%
def hint(mine, right):
    """What a wrong array has to do with the right one, if anything simple."""
    if mine.shape != right.shape:
        return f"its shape is {mine.shape}, expected {right.shape}"
    if not np.isfinite(mine).all():
        return "it has entries that are not finite"
    factor = (mine * right).sum() / (right * right).sum()
    if np.abs(mine - factor * right).max() <= 1e-10 * np.abs(mine).max():
        return f"it is {factor:.4g} times the right value"
    if mine.shape[0] == mine.shape[1] and np.allclose(mine, right.T, rtol=1e-10):
        return "it is the transpose of the right value"
    return f"it is off by up to {np.abs(mine - right).max():.2g}"


def check_answer(answer, arguments, right):
    """Call the answer and name its first wrong intermediate, in the order of `right`."""
    try:
        found = answer(*arguments)
    except Exception as error:  # whatever the reader's code does
        print(f"Your function raised {type(error).__name__}: {error}")
        return False
    if not isinstance(found, dict):
        found = {} if found is None else {next(iter(right)): found}
    for name, value in right.items():
        if found.get(name) is None:
            print(f"{name} is not filled in yet.")
            return False
        mine, expected = np.asarray(found[name]), np.asarray(value)
        if mine.shape != expected.shape or not np.allclose(mine, expected, rtol=1e-10, atol=1e-13):
            print(f"{name} is the first wrong one: {hint(mine, expected)}.")
            return False
    print("All right:", ", ".join(right))
    return True


# %% [markdown]
# **Exercise 1.** Write the backward pass of the three-layer network of section 1, without looking
# up. `W`, `Z`, `A` and `g_prime` are dicts from the number of a layer; $dA$ and $dZ$ are without
# $1/m$.


# %%
def my_backward_pass(W, Z, A, Y, g_prime):
    """Every intermediate of the backward pass, features x examples."""
    dZ3 = None  # (n_3, m)
    dW3 = None  # (n_3, n_2)
    db3 = None  # (n_3, 1)
    dA2 = None  # (n_2, m)
    dZ2 = None  # (n_2, m)
    dW2 = None  # (n_2, n_1)
    db2 = None  # (n_2, 1)
    dA1 = None  # (n_1, m)
    dZ1 = None  # (n_1, m)
    dW1 = None  # (n_1, n_0)
    db1 = None  # (n_1, 1)
    found = (dZ3, dW3, db3, dA2, dZ2, dW2, db2, dA1, dZ1, dW1, db1)
    return dict(zip(backward_order, found, strict=True))


exercise_1 = ((W, Z, A, Y, g_prime), {name: auto[name] for name in backward_order})
solved_1 = check_answer(my_backward_pass, *exercise_1)


# %% [markdown]
# This is what the checker says of a backward pass that forgets $1/m$ in $dW$, and of one that
# multiplies by $g'(A)$:


# %%
def with_mistake(name):
    """A backward pass with one of the mistakes of section 9."""
    return backward(cases["sizes 4, 6, 5, 3, and m = 7"], BROKEN[name])


of_case = {n: cases["sizes 4, 6, 5, 3, and m = 7"].auto[n] for n in backward_order}
for mistake in ("dW: 1/m missing", "dZ: g'(A), not g'(Z)"):
    assert not check_answer(with_mistake, (mistake,), of_case)

# %% [markdown]
# **Exercise 2.** A pair that is not canonical. The output activation is the sigmoid, the loss is
# half the squared error, $\ell_n = \tfrac12 \sum_i (A_{in} - Y_{in})^2$. What is $dZ^{[L]}$? Why
# does a unit that is confidently wrong learn slowly with this pair?


# %%
def my_output_error(A_L, Y):
    """dZ[L] for a sigmoid output with half squared error, (n_L, m)."""
    return None


sigmoid_cost = jax.jit(jax.grad(lambda z: optax.l2_loss(jax.nn.sigmoid(z), Y).sum()))
exercise_2 = ((sigma(Z[L]), Y), {"dZ[3]": sigmoid_cost(Z[L])})
solved_2 = check_answer(my_output_error, *exercise_2)


# %% [markdown]
# **Exercise 3.** A skip connection. Layer 2 has as many units as layer 1 and adds its input to its
# output: $A^{[2]} = g(Z^{[2]}) + A^{[1]}$ with $Z^{[2]} = W^{[2]} A^{[1]} + b^{[2]}$. Given
# $dA^{[2]}$, find $dZ^{[2]}$ and $dA^{[1]}$.


# %%
def my_skip_backward(W2, Z2, dA2, g_prime):
    """The errors dZ[2] and dA[1], (n, m) each."""
    dZ2 = None
    dA1 = None
    return {"dZ[2]": dZ2, "dA[1]": dA1}


rng = np.random.default_rng(8)
skip_W, skip_b = jnp.array(rng.normal(size=(6, 6))), jnp.array(rng.normal(size=(6, 1)))
skip_A1, skip_dA2 = jnp.array(rng.normal(size=(6, m))), jnp.array(rng.normal(size=(6, m)))


@jax.jit
@partial(jax.grad, argnums=(0, 1))
def skip_judge(at_Z, A1):
    """Autodiff's answer: sum(A2 * dA2) has the error dA2 at A2."""
    return ((jax.nn.tanh(skip_W @ A1 + skip_b + at_Z) + A1) * skip_dA2).sum()


right_dZ2, right_dA1 = skip_judge(jnp.zeros((6, m)), skip_A1)
skip_Z2 = skip_W @ skip_A1 + skip_b
exercise_3 = (
    (skip_W, skip_Z2, skip_dA2, g_prime[1]),
    {"dZ[2]": right_dZ2, "dA[1]": right_dA1},
)
solved_3 = check_answer(my_skip_backward, *exercise_3)

# %% [markdown]
# **Exercise 4** (on paper).
#
# a. The labels of an example sum to $s \ne 1$. What is $dZ^{[L]}$ for softmax and cross-entropy?
#
# b. Show that the entries of each column of $dZ^{[L]} = A^{[L]} - Y$ sum to zero. What follows for
# $db^{[L]}$?
#
# c. All weights and biases of a network are zero, $g = \tanh$. Which gradients are zero?
#
# d. Of what rank can $dW^{[l]}$ be at most, for a batch of $m$ examples?
#
# <details>
# <summary>Answers</summary>
#
# a. In the derivation of section 2 the factor $\sum_i Y_{in} = s$ stays:
# $dZ^{[L]} = s A^{[L]} - Y$.
#
# b. Softmax sums to one and so do the labels; the difference sums to zero. So the entries of
# $db^{[L]}$, means of these columns over the examples, sum to zero: adding the same number to all
# logits of an example changes nothing, and the gradient knows it.
#
# c. All but $db^{[L]}$. $W^{[L]} = 0$ makes $dA^{[L-1]}$ and every error below it zero, and with
# them $dW^{[l]}$ and $db^{[l]}$ for $l < L$. $A^{[L-1]} = \tanh(0) = 0$ makes $dW^{[L]}$ zero as
# long as $L > 1$. (With $L = 1$ the input is not zero, and nor, in general, is $dW^{[1]}$.) In
# general $db^{[L]}$ is not zero: training moves only the output's bias.
#
# d. It is a sum of $m$ outer products, so at most $\min(m, n_l, n_{l-1})$.
#
# </details>
#
# ### Solutions
#
# They run through the same checker. To exercise 2: the factor $A (1 - A)$ is near 0 where $A$ is
# near 0 or 1. A unit that is confidently wrong, $A \approx 0$ with $Y = 1$, gets hardly any error.
# The canonical pair, with $A - Y$ alone, has no such flat place.


# %%
def backward_pass_solution(W, Z, A, Y, g_prime):
    """Exercise 1."""
    m = Y.shape[1]
    dZ3 = A[3] - Y
    dW3 = dZ3 @ A[2].T / m
    db3 = dZ3.sum(axis=1, keepdims=True) / m
    dA2 = W[3].T @ dZ3
    dZ2 = dA2 * g_prime[2](Z[2])
    dW2 = dZ2 @ A[1].T / m
    db2 = dZ2.sum(axis=1, keepdims=True) / m
    dA1 = W[2].T @ dZ2
    dZ1 = dA1 * g_prime[1](Z[1])
    dW1 = dZ1 @ A[0].T / m
    db1 = dZ1.sum(axis=1, keepdims=True) / m
    found = (dZ3, dW3, db3, dA2, dZ2, dW2, db2, dA1, dZ1, dW1, db1)
    return dict(zip(backward_order, found, strict=True))


def output_error_solution(A_L, Y):
    """Exercise 2: dA = A - Y, times sigmoid' = A (1 - A)."""
    return (A_L - Y) * A_L * (1 - A_L)


def skip_backward_solution(W2, Z2, dA2, g_prime):
    """Exercise 3: A[1] is used twice, so its errors add."""
    dZ2 = dA2 * g_prime(Z2)
    dA1 = W2.T @ dZ2 + dA2
    return {"dZ[2]": dZ2, "dA[1]": dA1}


assert check_answer(backward_pass_solution, *exercise_1)
assert check_answer(output_error_solution, *exercise_2)
assert check_answer(skip_backward_solution, *exercise_3)

# %% [markdown]
# ## Sources
#
# - D. E. Rumelhart, G. E. Hinton, R. J. Williams, *Learning representations by back-propagating
#   errors*, Nature 323 (1986): the backward pass.
# - J. S. Bridle, *Probabilistic interpretation of feedforward classification network outputs, with
#   relationships to statistical pattern recognition* (1990): softmax with cross-entropy.
# - C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), section 4.3.6: canonical pairs
#   (canonical link functions).
# - W. Squire, G. Trapp, *Using complex variables to estimate derivatives of real functions*, SIAM
#   Review 40 (1998): the complex step.
# - X. Glorot, Y. Bengio, *Understanding the difficulty of training deep feedforward neural
#   networks* (2010), and K. He, X. Zhang, S. Ren, J. Sun, *Delving deep into rectifiers* (2015),
#   arXiv:1502.01852: the size of errors with depth, and initialisation.
# - E. Alpaydin, C. Kaynak, *Optical recognition of handwritten digits*, UCI Machine Learning
#   Repository (1998): the digits.
