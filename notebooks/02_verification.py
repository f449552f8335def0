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
# # How one knows that a gradient is right
#
# A gradient derived by hand is usually compared with autodiff, `allclose` says yes, and that is
# that. This notebook shows what such a comparison lets pass, and how the package `verify` judges a
# gradient with no tolerance set by hand. The idea is to run *the same program* in several
# arithmetics: in exact fractions, where right means equal; in more and more digits, where a right
# formula gets better and a wrong one does not; and in float64 that carries its own error bound.
# Then the judges are judged: by formulas broken on purpose. All outputs are kept, so the notebook
# can be read without running anything.
#
# 1. Wrong gradients that pass
# 2. Finite differences and their V-curve
# 3. One program, several arithmetics
# 4. Exact fractions
# 5. Growing precision
# 6. Error bounds
# 7. Mutants: judging the judges
# 8. Where autodiff itself is wrong: the edge table
# 9. How accurate: error over depth, and ulps
# 10. Your own rule in five lines
# 11. Exercises; answers

# %%
import textwrap
from collections import Counter
from fractions import Fraction

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

import manual_bp as mbp
import verify
from verify import judges, rules
from verify.bench import EQUIVALENT, Bench
from verify.arithmetic.error_bound import ErrorBound, gamma
from verify.arithmetic.multiprecision import Multiprecision
from verify.arithmetic.numpy import Float64
from verify.arithmetic.rational import Rational
from verify.interpreter import evaluate, trace
from verify.levels import edges
from verify.networks import Case
from verify.other_checkers import passes_allclose, passes_check_grads

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
UNIT = 2.0**-53  # unit roundoff of float64: one operation errs by at most this, relatively

# %% [markdown]
# ## 1. Wrong gradients that pass
#
# The example of this notebook is layer normalisation. For each vector $x \in \mathbb{R}^C$, with
# $\langle v \rangle$ the mean of the entries of $v$,
#
# $$r = \frac{1}{\sqrt{\langle (x - \langle x \rangle)^2 \rangle + \epsilon}}, \qquad
# \hat x = (x - \langle x \rangle)\, r, \qquad \text{out} = \gamma \hat x + \beta .$$
#
# Given the error `dout`, put $g = \gamma \odot \text{dout}$. From the Jacobian
# $\partial \hat x_j / \partial x_i = r (\delta_{ij} - \tfrac1C - \tfrac1C \hat x_i \hat x_j)$
# follows
#
# $$\boxed{\,dx = r \big(g - \langle g \rangle - \hat x \langle g \hat x \rangle\big),
# \qquad d\gamma = \sum \text{dout} \odot \hat x, \qquad d\beta = \sum \text{dout}\,}$$
#
# with both sums over the examples. Of the two terms subtracted in $dx$ one went through the mean,
# the other through the standard deviation.

# %%
EPS = 1e-5


def layer_norm(params, x):
    """out and what backward needs: (x̂, r)."""
    centred = x - x.mean(-1, keepdims=True)
    r = 1 / jnp.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    normalized = centred * r
    return params["scale"] * normalized + params["shift"], (normalized, r)


def layer_norm_backward(params, residuals, dout):
    """(dparams, dx)."""
    normalized, r = residuals
    dparams = {"scale": (dout * normalized).sum(0), "shift": dout.sum(0)}
    g = params["scale"] * dout
    through_mean = g.mean(-1, keepdims=True)
    through_std = normalized * (g * normalized).mean(-1, keepdims=True)
    return dparams, r * (g - through_mean - through_std)


# %% [markdown]
# **A test that cannot fail.** A common test differentiates `out.sum()`: the error `dout` is all
# ones. Parameters are as they are initialised, $\gamma = 1$, $\beta = 0$. Then $g = 1$, the
# brackets above are $1 - 1 - \hat x \langle \hat x \rangle = 0$, and the true $dx$ is zero. A
# backward pass that *returns zeros* is right under this test. The sum of a softmax is 1 whatever
# its input, so its gradient hides in the same way. With a random `dout` nothing hides.


# %%
def dx_is_zero(params, residuals, dout):
    """A wrong backward pass: it returns zeros for dx."""
    dparams, dx = layer_norm_backward(params, residuals, dout)
    return dparams, jnp.zeros_like(dx)


rng = np.random.default_rng(0)
x = rng.normal(size=(6, 4)).astype(np.float32)
as_initialised = {"scale": jnp.ones(4), "shift": jnp.zeros(4)}


@jax.jit
def three_ways(dout):
    """dx by autodiff, by hand, and as zeros."""
    _, pull, residuals = jax.vjp(layer_norm, as_initialised, x, has_aux=True)
    backwards = (layer_norm_backward, dx_is_zero)
    return pull(dout)[1], [each(as_initialised, residuals, dout)[1] for each in backwards]


passed = {}
for name, dout in {"all ones": np.ones((6, 4)), "random": rng.normal(size=(6, 4))}.items():
    true_dx, (by_hand, zeros) = three_ways(dout.astype(np.float32))
    for backward, dx in ((layer_norm_backward, by_hand), (dx_is_zero, zeros)):
        passed[name, backward] = np.allclose(dx, true_dx, rtol=1e-5, atol=1e-5)
        print(f"dout {name:<9} {backward.__name__:<20} allclose: {passed[name, backward]}")
assert passed["all ones", dx_is_zero] and not passed["random", dx_is_zero]
assert passed["all ones", layer_norm_backward] and passed["random", layer_norm_backward]

# %% [markdown]
# **A tolerance that is a matter of size.** `allclose` passes $g'$ for $g$ when
# $|g' - g| \le \text{atol} + \text{rtol}\,|g|$. Say both tolerances are $10^{-5}$. The gradient of
# a mean over $m$ examples has entries of about $1/m$, and as $m$ grows they sink into `atol`.
# Below, the logits' gradient $(A - Y)/m$ of softmax and cross-entropy is multiplied by
# $1 + \delta$, and we ask for the largest $\delta$ that passes. At $m = 100$ an
# error of $10^{-3}$ passes. From $m \approx 10^5$ on $\delta$ exceeds 1, and a gradient of zeros
# passes. The green line is the judge of section 6, which has no
# tolerance to set.

# %%
BOUNDS = ErrorBound()
batch_sizes = np.array([1, 100, 10_000, 100_000])
smallest_seen = {"allclose": [], "error bounds": []}
for m in batch_sizes:
    rule = rules.of_loss(mbp.SoftmaxCrossEntropy(), (m, 3))
    logits = rng.normal(size=(m, 3))
    args = (logits, rng.integers(3, size=m), np.full(m, 1 / m))
    manual, autodiff = (p.run(args, BOUNDS)["dprediction"] for p in rule.programs(args))
    size = np.abs(autodiff.value)
    assert (np.abs(manual.value - autodiff.value) <= manual.bound + autodiff.bound).all()
    by_allclose = ((1e-5 + 1e-5 * size) / size).min()
    assert np.allclose(autodiff.value * (1 + 0.99 * by_allclose), autodiff.value, 1e-5, 1e-5)
    assert not np.allclose(autodiff.value * (1 + 1.01 * by_allclose), autodiff.value, 1e-5, 1e-5)
    smallest_seen["allclose"].append(by_allclose)
    smallest_seen["error bounds"].append(((manual.bound + autodiff.bound) / size).min())

fig, axis = plt.subplots(figsize=(8, 4.2))
axis.loglog(batch_sizes, smallest_seen["allclose"], "o-", color=RED, label="allclose, 1e-5")
axis.loglog(batch_sizes, smallest_seen["error bounds"], "o-", color=GREEN, label="error bounds")
axis.axhline(1, color=GREY, linestyle="--", linewidth=1)
axis.text(1, 1.6, "above this line a gradient of zeros passes", color="#333333", fontsize=10)
axis.set(
    xlabel="examples in the batch, $m$",
    ylabel="largest relative error that passes",
    ylim=(1e-17, 100),
)
axis.legend(loc="center left")
fig.suptitle("What a check lets pass: every entry of a gradient off by the same factor")
plt.show()
assert max(smallest_seen["error bounds"]) < 1e-13 < 1 < smallest_seen["allclose"][-1]

# %% [markdown]
# ## 2. Finite differences and their V-curve
#
# Finite differences know no rule of differentiation, so they share no mistake with a derivation.
# For a direction $V$ in the space of all parameters $\theta$, with Taylor's theorem,
#
# $$\frac{J(\theta + hV) - J(\theta - hV)}{2h} = \langle \nabla J, V \rangle
# + \frac{h^2}{6}\, J'''(\theta)[V, V, V] + O(h^4) + O\!\Big(\frac{u |J|}{h}\Big).$$
#
# The last term is the rounding of the two values of $J$, blown up by $1/h$. The error is a V over
# $h$; its bottom is near $h = u^{1/3}$ with an error of about $u^{2/3}$: $2 \times 10^{-11}$ in
# float64, $2 \times 10^{-5}$ in float32, times what the derivatives add.
#
# The network has one hidden layer of tanh units. One of its gradients, $dW^{[1]}$, is then made
# wrong by a factor $1 + \delta$. In the left panel a wrong gradient is seen where its curve leaves
# that of the right one: only at steps where the V lies below its error. The right panel says how
# small a $\delta$ each check can notice at best. For finite differences this is the bottom of the
# V, which in practice one does not know and replaces by a tolerance.

# %%
network, loss = mbp.mlp([5, 8, 3], hidden=mbp.tanh), mbp.SoftmaxCrossEntropy()
case = Case(network, loss, (16, 5))
rule = rules.of_case(case, every_intermediate=False)
params, x, *_ = rule.draw(rules.generator(3), "normal")
y = rng.integers(3, size=16)
problem = (params, x, y, None)
manual, autodiff = (program.run(problem, BOUNDS) for program in rule.programs(problem))
assert judges.within_bounds(manual, autodiff).ok
gradient = {name: value.value for name, value in manual.items() if judges.is_gradient(name)}


def cost(params, x, y):
    """The mean cross-entropy of the network, in the precision of its arguments."""
    (W1, b1), (W2, b2) = params
    log_A = jax.nn.log_softmax(jnp.tanh(x @ W1.T + b1) @ W2.T + b2)
    return -(jax.nn.one_hot(y, 3) * log_A).sum(-1).mean()


cost_program, cost_32 = trace(cost, params, x, y), jax.jit(cost)
assert np.isclose(cost_program.run((params, x, y), Float64()), manual["J"].value, rtol=1e-14)
direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
V = dict(zip(("dW1", "db1", "dW2", "db2"), jax.tree.leaves(direction), strict=True))


def slope(factor=1.0):
    """<gradient, V>, with dW1 multiplied by a factor."""
    along = {name: float((gradient[name] * V[name]).sum()) for name in gradient}
    return sum(along.values()) + (factor - 1) * along["dW1"]


def quotient(h, dtype):
    """The central difference of J along V."""
    values = []
    for step in (h, -h):
        moved = jax.tree.map(lambda p, v, step=step: p + step * v, params, direction)
        if dtype == np.float32:
            moved = jax.tree.map(np.float32, moved)
            values.append(float(cost_32(moved, np.float32(x), y)))
        else:
            values.append(float(cost_program.run((moved, x, y), Float64())))
    return (values[0] - values[1]) / (2 * h)


steps = np.logspace(-12, -0.5, 47)
quotients = {dtype: np.array([quotient(h, dtype) for h in steps]) for dtype in (np.float32, float)}
size_of_dW1 = abs(slope(2) - slope())


def bottom(values):
    """The lowest point of a V: of the medians of five neighbours, since single ones are luck."""
    return min(np.median(values[i : i + 5]) for i in range(len(values) - 4))


best = {k: bottom(np.abs(q - slope())) / size_of_dW1 for k, q in quotients.items()}
entry = np.abs(gradient["dW1"])
notices = {
    "finite differences, float32": best[np.float32],
    "allclose, 1e-5": ((1e-5 + 1e-5 * entry) / entry).min(),
    "finite differences, float64": best[float],
    "error bounds": ((manual["dW1"].bound + autodiff["dW1"].bound) / entry).min(),
}

fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.4), width_ratios=(1.35, 1))
for delta, colour in ((1e-3, RED), (1e-6, ORANGE), (1e-9, PURPLE)):
    error = np.abs(quotients[float] - slope(1 + delta)) / size_of_dW1
    left.loglog(steps, error, color=colour, linewidth=3, alpha=0.55, label=f"wrong by {delta:.0e}")
for dtype, colour, name in ((float, BLUE, "right"), (np.float32, GREY, "right, J in float32")):
    error = np.abs(quotients[dtype] - slope()) / size_of_dW1
    left.loglog(steps, error, ".-", color=colour, linewidth=1, markersize=4, label=name)
left.text(2e-12, 3e-10, "rounding ∝ u/h", fontsize=9.5)
left.text(2e-4, 1e-9, "truncation ∝ h²", fontsize=9.5)
left.set(
    xlabel="step $h$",
    ylabel="|difference quotient − slope|,\nrelative to the share of $dW^{[1]}$",
    title="slope along $V$ by the gradient, right or wrong in $dW^{[1]}$",
    ylim=(1e-12, 1e7),
)
left.legend(fontsize=9, ncols=2, loc="upper right")
right.barh(range(4), notices.values(), color=(GREY, RED, BLUE, GREEN))
right.set_xscale("log")
for place, value in enumerate(notices.values()):
    right.text(1.3 * value, place, f"{value:.0e}", va="center", fontsize=10)
right.set_yticks(range(4), notices)
right.set(xlim=(1e-16, 1), xlabel="smallest relative error in $dW^{[1]}$ noticed, at best")
right.invert_yaxis()
fig.suptitle("What finite differences can see")
plt.show()
assert notices["error bounds"] < 1e-13 < notices["finite differences, float64"] < 1e-8
assert notices["finite differences, float32"] > 1e-6

# %% [markdown]
# What finite differences cannot see, even so: an error across $V$ (one direction tests one number;
# all $n$ derivatives take $2n$ evaluations), and the convention at a kink, which they straddle.
# They remain the one judge here that knows no chain rule, and `verify` keeps them as such.
#
# ## 3. One program, several arithmetics
#
# `jax.make_jaxpr` turns a function into a *jaxpr*: a list of equations, each a primitive applied to
# values. It is the program before any compiler has seen it. Every primitive can be carried out in
# another arithmetic than float32. `verify.interpreter` walks through the list and looks each
# primitive up in a table:
#
# | arithmetic | a number is | what two right programs give |
# |---|---|---|
# | `Float64` | a double | almost the same |
# | `Rational` | a fraction of two integers | the same: `==` |
# | `Multiprecision(d)` | $d$ decimal digits | the same to about $d$ digits, for every $d$ |
# | `ErrorBound` | a double and a bound on its error | values whose bounds overlap |
#
# Here it is in full on one weight of one relu unit: $z = wx + b$, $a = \max(z, 0)$,
# $J = \tfrac13 \cdot \tfrac12 (a - y)^2$, so $dw = \tfrac13 (a - y)\, [z > 0]\, x$.


# %%
def one_weight(w, b, x, y):
    """J's derivative with respect to w, for one example of three."""
    z = w * x + b
    a = jnp.maximum(z, 0)
    dz = (a - y) * (z > 0)
    return dz * x / 3


numbers = tuple(np.array(each) for each in (0.75, 0.25, 0.5, 0.125))  # w, b, x, y
program = trace(one_weight, *numbers)
print(program.jaxpr.pretty_print(use_color=False))

# %%
ARITHMETICS = (Float64(), Rational(), Multiprecision(25), ErrorBound())
columns = []
for arithmetic in ARITHMETICS:
    column = []

    def record(place, equation, inputs, run, column=column):
        """Called around every equation: run it, and note what came out."""
        outputs = run(*inputs)
        column.append((equation.primitive.name, outputs[0]))
        return outputs

    program.run(numbers, arithmetic, record)
    columns.append(column)


def written(value):
    """A value of any of the arithmetics, as text."""
    if hasattr(value, "bound"):
        bound = float(value.bound)
        return (
            f"{float(value.value):.6g} ± {bound:.1e}" if bound else f"{float(value.value):.6g} ± 0"
        )
    return str(value.item() if hasattr(value, "item") else value)


rows = ["| primitive | " + " | ".join(each.name for each in ARITHMETICS) + " |", "|---" * 5 + "|"]
for equations in zip(*columns, strict=True):
    rows.append(f"| `{equations[0][0]}` | " + " | ".join(written(v) for _, v in equations) + " |")
display(Markdown("\n".join(rows)))
(exact,) = evaluate(program.jaxpr, [Rational().lift(each) for each in numbers], Rational())
assert exact == Fraction(1, 12)
assert Fraction(float(columns[0][-1][1])) != Fraction(1, 12)

# %% [markdown]
# Only the last equation rounds: $\tfrac1{12}$ is no double. The error bound knows that all before
# it was exact, and there it is $u$ times the value.
#
# From here on a **rule** is a pair of programs with the same arguments and the same names of
# results: the gradient by hand, and autodiff's. Both are traced, and both are run in the same
# arithmetic.


# %%
def rule_of(forward, backward, params_shapes, x_shape, name):
    """A backward pass beside jax.vjp of its forward pass, with random arguments."""

    def named(out, dparams, dx):
        return {"out": out, **{f"d{key}": each for key, each in dparams.items()}, "dx": dx}

    def manual(params, x, dout):
        out, residuals = forward(params, x)
        return named(out, *backward(params, residuals, dout))

    def autodiff(params, x, dout):
        out, pull = jax.vjp(lambda p, v: forward(p, v)[0], params, x)
        return named(out, *pull(dout))

    def draw(rng, kind):
        params = {key: rules.numbers(rng, kind, shape) for key, shape in params_shapes.items()}
        x = rules.numbers(rng, kind, x_shape)
        out_shape = jax.eval_shape(forward, params, x)[0].shape
        return params, x, rules.numbers(rng, "normal" if kind == "large" else kind, out_shape)

    names = ["out", *(f"d{key}" for key in sorted(params_shapes)), "dx"]
    return rules.Rule(
        name, name, manual, autodiff, draw, cotangent=2, differentiated=2, names=lambda *_: names
    )


NORM_SHAPES = {"scale": (4,), "shift": (4,)}
norm = rule_of(layer_norm, layer_norm_backward, NORM_SHAPES, (6, 4), "layer norm")
arguments = norm.draw(rules.generator(0), "normal")
for program, name in zip(norm.programs(arguments), ("by hand", "autodiff"), strict=True):
    primitives = Counter(equation.primitive.name for equation in program.jaxpr.jaxpr.eqns)
    counted = ", ".join(f"{count} {primitive}" for primitive, count in primitives.most_common())
    print(textwrap.fill(f"{name}: {counted}", 80, subsequent_indent="    "))

# %% [markdown]
# ## 4. Exact fractions
#
# A network of dense layers, relus and squared errors only adds, multiplies, divides and compares.
# Over fractions these have no rounding, whatever the order of the operations. (A double is a
# fraction too: its mantissa over a power of two.) So the two programs must give the *same
# fractions*, and the comparison is `==`.
#
# Here are the formulas of the notes for two layers, with the $1/m$ in $dW$ and $db$, at the end.
# Autodiff of a mean has the $1/m$ at the start. With $m = 7$ the two round differently, so in
# float64 they differ in the last bits.


# %%
def network_cost(params, x, y):
    """Half the squared error of a relu network, the mean over the examples."""
    (W1, b1), (W2, b2) = params
    out = jax.nn.relu(x @ W1.T + b1) @ W2.T + b2
    return (0.5 * (out - y) ** 2).sum() / len(x)


def notes_gradient(params, x, y):
    """Its gradient by the formulas of the notes; examples first."""
    (W1, b1), (W2, b2) = params
    m = len(x)
    Z1 = x @ W1.T + b1
    A1 = jax.nn.relu(Z1)
    dZ2 = A1 @ W2.T + b2 - y
    dZ1 = dZ2 @ W2 * (Z1 > 0)
    return {
        "dW1": dZ1.T @ x / m,
        "db1": dZ1.sum(0) / m,
        "dW2": dZ2.T @ A1 / m,
        "db2": dZ2.sum(0) / m,
    }


def autodiff_gradient(params, x, y):
    """Its gradient by jax.grad, with the same names."""
    (dW1, db1), (dW2, db2) = jax.grad(network_cost)(params, x, y)
    return {"dW1": dW1, "db1": db1, "dW2": dW2, "db2": db2}


def draw_network(rng, kind):
    """Random params, x and y: 7 examples, layers of 5, 6 and 4 units."""
    (W1, b1, W2, b2, x, y) = (
        rules.numbers(rng, kind, shape) for shape in ((6, 5), (6,), (4, 6), (4,), (7, 5), (7, 4))
    )
    return ((W1, b1), (W2, b2)), x, y


relu_rule = rules.Rule("relu network", "", notes_gradient, autodiff_gradient, draw_network)
relu_arguments = relu_rule.draw(rules.generator(1), "normal")


def differences(rule, args, arithmetic, change=None):
    """|by hand - autodiff| of every entry of the gradient, in this arithmetic."""
    manual, autodiff = rule.programs(args)
    ours = change.run(manual, args, arithmetic) if change else manual.run(args, arithmetic)
    theirs = autodiff.run(args, arithmetic)
    names = [name for name in theirs if judges.is_gradient(name)]
    return np.concatenate([np.ravel(abs(ours[name] - theirs[name])) for name in names])


in_float64 = differences(relu_rule, relu_arguments, Float64())
in_fractions = differences(relu_rule, relu_arguments, Rational())
print(f"entries of the gradient: {in_fractions.size}")
print(f"float64:   {np.mean(in_float64 == 0):.0%} equal, largest difference {in_float64.max():.1e}")
print(f"fractions: {np.mean(in_fractions == 0):.0%} equal")
one = relu_rule.programs(relu_arguments)[0].run(relu_arguments, Rational())["db2"][0]
digits = len(str(one.denominator))
print(f"one of them, db2[0], is {float(one):.6f}; its denominator has {digits} decimal digits")
assert judges.rational(relu_rule, relu_arguments).ok and (in_fractions == 0).all()
assert in_float64.any()

# %% [markdown]
# **Ties.** Since fractions are exact, arguments may be chosen so that $z$ is *exactly* 0. There a
# relu has a kink; every number in $[0, 1]$ is a subgradient, and which one is taken is a
# convention. Ours is that of `jax.nn.relu`, $g'(0) = 0$. A derivation that writes `z >= 0` for
# `z > 0` agrees with ours at every point but one. Random real numbers never meet this point.
# Multiples of ½ do.

# %%
relu_alone = rules.of_layer(mbp.relu, (4, 2))
at_least = next(each for each in Bench(relu_alone).mutants() if each.kind == "made ge")
caught = {}
for kind in ("normal", "ties"):
    drawn = [relu_alone.draw(rules.generator(seed), kind) for seed in range(100)]
    wrong = (differences(relu_alone, args, Rational(), at_least) for args in drawn)
    caught[kind] = sum(bool(each.any()) for each in wrong)
    right = sum(judges.rational(relu_alone, args).ok for args in drawn)
    print(f"{kind:<7} z > 0 passes {right} of 100 draws, z >= 0 is caught in {caught[kind]}")
    assert right == 100
assert caught["normal"] == 0 < caught["ties"]

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
entries = np.arange(in_float64.size)
left.plot(entries, 1e15 * in_float64, ".", color=ORANGE, label="float64")
left.plot(entries, 1e15 * in_fractions.astype(float), "-", color=BLUE, lw=2, label="fractions")
left.set(
    xlabel="entry of the gradient",
    ylabel="|by hand − autodiff|   ($10^{-15}$)",
    title="a network of relus with squared errors",
    ylim=(-0.05, 1.3e15 * in_float64.max()),
)
left.legend(loc="upper right", ncols=2)

kinks = {
    "by hand": (float(mbp.relu.derivative(jnp.zeros(()))), "o", BLUE, 10),
    "jax.nn.relu": (float(jax.grad(jax.nn.relu)(0.0)), "x", ORANGE, 8),
    "jnp.maximum(z, 0)": (
        float(jax.grad(lambda z: jnp.maximum(z, 0))(0.0)),
        "s",
        RED,
        8,
    ),
}
for z, value in (([-1, 0], [0, 0]), ([0, 1], [1, 1])):
    right.plot(z, value, color="black", linewidth=1.5, zorder=1)
right.plot([0, 0], [0, 1], color=GREY, linewidth=6, alpha=0.35, label="subgradients", zorder=0)
for name, (value, marker, colour, size) in kinks.items():
    right.plot(0, value, marker, color=colour, markersize=size, label=name, linestyle="none")
right.set(
    xlabel="$z$",
    ylabel="$g'(z)$",
    title="relu at its kink, by hand and by autodiff",
    ylim=(-0.15, 1.15),
)
right.legend(fontsize=9.5, loc="upper left")
fig.suptitle("In exact fractions right means equal, and a tie is a test")
plt.show()
assert kinks["by hand"][0] == kinks["jax.nn.relu"][0] == 0

# %% [markdown]
# ## 5. Growing precision
#
# Fractions cannot hold $\tanh$ or a square root. But two programs for the same smooth function
# differ by rounding alone, and rounding shrinks with the number of digits $d$ like $10^{-d}$. The
# difference between two *different* functions does not: at 80 digits it is what it is at 10.
#
# Five backward passes of layer normalisation. One is right; two leave out a term; one divides the
# variance by $C - 1$; and one forgets $\epsilon$, which changes $dx$ by about $10^{-5}$ of itself:
# under a tolerance of $10^{-4}$ that is a right gradient.


# %%
def norm_backward(r_of=lambda r: r, mean=1, std=1):
    """Layer norm's backward pass, with another r, or a term left out."""

    def backward(params, residuals, dout):
        normalized, r = residuals
        dparams, _ = layer_norm_backward(params, residuals, dout)
        g = params["scale"] * dout
        through_mean = g.mean(-1, keepdims=True)
        through_std = normalized * (g * normalized).mean(-1, keepdims=True)
        return dparams, r_of(r) * (g - mean * through_mean - std * through_std)

    return backward


VARIANTS = {
    "right": (norm_backward(), BLUE, "o"),
    "through the mean: left out": (norm_backward(mean=0), RED, "s"),
    "through the deviation: left out": (norm_backward(std=0), ORANGE, "^"),
    "variance divided by C − 1": (norm_backward(lambda r: r * jnp.sqrt(3 / 4)), PURPLE, "v"),
    "ε forgotten": (norm_backward(lambda r: 1 / jnp.sqrt(1 / r**2 - EPS)), GREEN, "D"),
}
precisions = (10, 20, 40, 80)
fig, axis = plt.subplots(figsize=(8.5, 4.6))
print(f"{'digits':<32}" + "".join(f"{d:>10}" for d in precisions) + "   verdict")
for name, (backward, colour, marker) in VARIANTS.items():
    variant = rule_of(layer_norm, backward, NORM_SHAPES, (6, 4), name)
    shrinking = [max(differences(variant, arguments, Multiprecision(d))) for d in precisions]
    verdict = judges.digits(variant, arguments)
    said = "right" if verdict.ok else f"wrong: {verdict.first_wrong}"
    print(f"{name:<32}" + "".join(f"{float(e):>10.0e}" for e in shrinking) + f"   {said}")
    axis.plot(
        precisions, [float(e) for e in shrinking], marker=marker, color=colour, label=name, lw=1.6
    )
    assert verdict.ok == (name == "right")
    assert (shrinking[-1] < 1e-70) == (name == "right") and shrinking[0] > 0
axis.plot(precisions, [10.0**-d for d in precisions], ":", color="black", label="$10^{-d}$")
axis.set_yscale("log")
axis.set(
    xlabel="decimal digits $d$ of every operation",
    ylabel="largest |by hand − autodiff|",
    xticks=precisions,
    ylim=(1e-88, 1e6),
)
axis.legend(fontsize=9.5, loc="lower left")
fig.suptitle("A right formula gets better with every digit, a wrong one does not")
plt.show()

# %% [markdown]
# ## 6. Error bounds
#
# The third arithmetic is the fastest and needs no exactness: float64 in which every value carries a
# bound on its own error. Let $\hat a$ be computed, $|\hat a - a| \le e_a$, and $u = 2^{-53}$. Then
#
# $$\begin{aligned}
# a + b:&\quad e_a + e_b + u\,|\hat a + \hat b| \\
# a\,b:&\quad |\hat a| e_b + |\hat b| e_a + e_a e_b + u\,|\hat a \hat b| \\
# f(a):&\quad e_a \sup_{|t| \le e_a} |f'(\hat a + t)| + 4\ \text{ulp}
# \end{aligned}$$
#
# and for a dot product of length $n$, in *any* order of summation (Higham, section 3.1),
#
# $$\Big|\,\widehat{\textstyle\sum_i a_i b_i} - \sum_i a_i b_i\Big|
# \le \gamma_n \sum_i |a_i b_i|, \qquad \boxed{\gamma_n = \frac{n u}{1 - n u}}.$$
#
# Each of $n$ products meets at most $n$ roundings, a factor $(1 + \delta_1) \cdots (1 + \delta_n)$
# with $|\delta_k| \le u$, and $|\prod_k (1 + \delta_k) - 1| \le \gamma_n$. The one constant that is
# not derived is the 4 ulp that math libraries promise for exp, tanh and the like.
#
# Two programs for the same function then satisfy
#
# $$|\text{by hand} - \text{autodiff}| \le E_{\text{by hand}} + E_{\text{autodiff}},$$
#
# always. No one has to choose anything.
#
# Is the bound a bound? The true error is known, from 50 digits. On the left every entry of every
# result of five rules, by hand and by autodiff: its true error and its bound. No point may lie
# below the diagonal. On the right dot products of positive random numbers, in two orders of
# summation, beside $\gamma_n$. Rounding errors are as often up as down, so in a sum taken one after
# the other they grow like $\sqrt n\, u$; a bound must allow for the worst.

# %%
deep = Case(mbp.mlp([6, 6, 6, 6, 6, 3], hidden=mbp.tanh), mbp.SoftmaxCrossEntropy(), (5, 6))
CHECKED = {
    "layer norm": (norm, GREEN),
    "dense, tanh": (rules.of_layer(mbp.Dense(3, mbp.tanh), (8, 5)), BLUE),
    "dense, gelu": (rules.of_layer(mbp.Dense(3, mbp.gelu), (8, 5)), PURPLE),
    "cross-entropy": (rules.of_loss(mbp.SoftmaxCrossEntropy(), (8, 5)), RED),
    "five layers": (rules.of_case(deep, every_intermediate=False), ORANGE),
}
FIFTY = Multiprecision(50)
cloud, ratios, shares = {}, [], []
for name, (rule, _) in CHECKED.items():
    args = rule.draw(rules.generator(4), "normal")
    points = []
    for program in rule.programs(args):
        bounded, exact = program.run(args, BOUNDS), program.run(args, FIFTY)
        for key, value in bounded.items():
            error = np.asarray(abs(value.value - exact[key]), np.float64)
            points.append(np.stack([np.ravel(error), np.ravel(value.bound)]))
        shares += judges.tightness(bounded)
    cloud[name] = np.concatenate(points, axis=1)
    error, bound = cloud[name]
    assert (error <= bound).all(), name
    ratios.append(bound[error > 0] / error[error > 0])
ratios = np.concatenate(ratios)
count = sum(each.shape[1] for each in cloud.values())
print(f"{count} entries, the bound exceeded in none")
print(f"bound over true error: median {np.median(ratios):.0f}, smallest {ratios.min():.2f}")
print(f"bound relative to the largest entry: median {np.median(shares):.0e}")

lengths = 2 ** np.arange(1, 13)
dot_errors = {"one after the other": [], "as NumPy sums": []}
for n in lengths:
    for _ in range(8):
        a, b = rng.random(size=(2, n))
        exact = sum(Fraction(p) * Fraction(q) for p, q in zip(a, b, strict=True))
        magnitude = float(np.abs(a) @ np.abs(b))
        computed = {"one after the other": np.add.accumulate(a * b)[-1], "as NumPy sums": a @ b}
        for name, value in computed.items():
            dot_errors[name].append((n, float(abs(Fraction(float(value)) - exact)) / magnitude))

fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6))
for name, (_, colour) in CHECKED.items():
    error, bound = cloud[name]
    seen = (bound > 0) & (error > 0)
    left.loglog(error[seen], bound[seen], ".", color=colour, ms=4, alpha=0.6, label=name)
ends = np.array([3e-22, 1e-12])
left.plot(ends, ends, color="black", linewidth=1)
left.fill_between(ends, ends, 1e-30, color=RED, alpha=0.08, linewidth=0)
left.text(3e-15, 2e-20, "error above its bound:\nempty", ha="center", color=RED, fontsize=10)
left.set(xlabel="true error, by 50 digits", ylabel="bound", xlim=(4e-22, 1e-13), ylim=(1e-21, 1e-7))
left.legend(fontsize=9, loc="upper center", ncols=3, markerscale=2, columnspacing=0.8)
for (name, errors), colour in zip(dot_errors.items(), (ORANGE, BLUE), strict=True):
    n, error = np.array(errors).T
    right.loglog(n, np.maximum(error, 1e-19), ".", color=colour, alpha=0.6, label=name)
    assert (error <= [gamma(int(each)) for each in n]).all()
right.plot(lengths, [gamma(int(n)) for n in lengths], color="black", label=r"bound, $\gamma_n$")
right.plot(lengths, np.sqrt(lengths) * UNIT, ":", color="black", label=r"$\sqrt{n}\,u$")
right.set(xlabel="length $n$", ylabel="error of a dot product / $\\sum |a_i b_i|$")
right.set_ylim(3e-20, 1e-10)
right.legend(fontsize=9.5, loc="upper left", ncols=2)
fig.suptitle("Error bounds are never exceeded, and are tight enough to be a judge")
plt.show()

# %% [markdown]
# A comparison whose two sides lie closer than their bounds is *doubtful*: rounding could turn it.
# What is selected by it is then bounded over both outcomes. Where a sum or a product comes out
# exactly, no bound is added, so ties at kinks stay ties and remain a test.
#
# ## 7. Mutants: judging the judges
#
# A judge that has never said no proves nothing. So every equation of a traced program is broken on
# purpose, one at a time: zeroed, negated, scaled by $1 + 10^{-2}, \dots, 1 + 10^{-5}$, an operand
# transposed or dropped, the operator exchanged, a sum made a mean, a comparison turned. Each such
# program is a **mutant**, and the judge must kill it: see that it differs from autodiff by more
# than rounding may.
#
# Some mutants cannot be killed, since they compute the same function. Whoever calls a survivor
# harmless must show it. Here a survivor is compared with the rule itself, in fractions or at 80
# digits, on many draws with ties among them; and it must belong to a class that is listed with its
# reason. A survivor that differs, or that no class holds, is a failure of the judge.


# %%
def dense_tanh(params, x):
    """out and what backward needs: (x, a)."""
    a = jnp.tanh(x @ params["W"].T + params["b"])
    return a, (x, a)


def dense_tanh_backward(params, residuals, dout):
    """(dparams, dx)."""
    a_prev, a = residuals
    dz = dout * (1 - a**2)
    return {"W": dz.T @ a_prev, "b": dz.sum(0)}, dz @ params["W"]


MUTATED = (
    norm,
    rule_of(dense_tanh, dense_tanh_backward, {"W": (3, 3), "b": (3,)}, (4, 3), "dense, tanh"),
    rules.of_layer(mbp.Dense(3, mbp.relu), (4, 2)),
    rules.of_loss(mbp.SquaredError(), (4, 3)),
)
judged = []
for rule in MUTATED:
    bench = Bench(rule)
    judged += [(rule, bench.judge(mutant)) for mutant in bench.mutants()]
killed = [(rule, outcome.mutant) for rule, outcome in judged if outcome.killed]
same = Counter(outcome.equivalent for _, outcome in judged if not outcome.killed)
print(f"{len(judged)} mutants, {len(killed)} killed, {sum(same.values())} the same function:\n")
for name, count in same.items():
    assert name in EQUIVALENT, name  # neither a survivor that differs, nor one not listed
    reason = textwrap.fill(EQUIVALENT[name].reason, 86, subsequent_indent=" " * 8)
    print(f"{count:>4}  {name}:\n        {reason}")


# %%
def column_of(kind):
    """The column of the map for a kind of change."""
    if kind in ("made a mean", "made a maximum"):
        return "sum made mean or max"
    if kind in ("made ge", "made gt", "made le", "made lt", "made eq", "made ne"):
        return "comparison turned"
    for start, column in {
        "made": "operator exchanged",
        "only operand": "operand dropped",
        "operand": "operand transposed",
        "over axis": "sum over another axis",
    }.items():
        if kind.startswith(start):
            return column
    if kind.startswith("scaled by 1."):
        return f"scaled by 1 + {float(kind.removeprefix('scaled by ')) - 1:.0e}"
    return {"scaled by -1": "negated", "scaled by 2": "doubled", "scaled by 0.5": "halved"}.get(
        kind, kind
    )


counts = Counter()
for _, outcome in judged:
    mutant = outcome.mutant
    counts[mutant.primitive, column_of(mutant.kind), outcome.killed] += 1
row_names = sorted({row for row, _, _ in counts})
column_names = list(dict.fromkeys(column_of(outcome.mutant.kind) for _, outcome in judged))
states = np.zeros((len(row_names), len(column_names)), int)
fig, axis = plt.subplots(figsize=(11, 6.6))
for i, row in enumerate(row_names):
    for j, column in enumerate(column_names):
        dead, alike = counts[row, column, True], counts[row, column, False]
        states[i, j] = 3 if dead and alike else 1 if dead else 2 if alike else 0
        text = f"{dead}+{alike}" if dead and alike else str(dead + alike or "")
        axis.text(j, i, text, ha="center", va="center", fontsize=8.5, color="black")
palette = ["#F2F2F2", "#9CC9E3", "#F5D58A", "#B9DFC6"]
axis.imshow(states, cmap=ListedColormap(palette), vmin=0, vmax=3, aspect="auto")
axis.set_yticks(range(len(row_names)), row_names)
axis.set_xticks(range(len(column_names)), column_names, rotation=40, ha="right")
axis.set_xticks(np.arange(len(column_names)) - 0.5, minor=True)
axis.set_yticks(np.arange(len(row_names)) - 0.5, minor=True)
axis.grid(which="minor", color="white", linewidth=2)
axis.tick_params(which="both", length=0)
axis.spines[:].set_visible(False)
names = ("not applicable", "killed", "the same function", "killed + the same function")
legend = [Patch(color=colour, label=name) for colour, name in zip(palette, names, strict=True)]
fig.legend(handles=legend, loc="outside upper right", ncols=4, fontsize=9.5)
axis.set_title("number of mutants, by primitive and by what was done to it", loc="left")
plt.show()

# %% [markdown]
# **The same mutants under other judges.** Only mutants that compute another function are counted.
# All judges look at the same random point: the error bounds; `np.allclose` with both tolerances
# $10^{-5}$, in float64; and `jax.test_util.check_vjp`, the finite-difference check behind
# `jax.test_util.check_grads`, in float32 with its own tolerances. All three pass the right rules.

# %%
GROUPS = {
    "zeroed": ("zeroed",),
    "negated": ("scaled by -1",),
    "1 + 10⁻²": ("scaled by 1.01",),
    "1 + 10⁻³": ("scaled by 1.001",),
    "1 + 10⁻⁴": ("scaled by 1.0001",),
    "1 + 10⁻⁵": ("scaled by 1.00001",),
}
at = {rule.name: rule.draw(rules.generator(0), "normal") for rule in MUTATED}


def seen_by(rule, run_manual):
    """Which judges say that this program isn't autodiff's; run_manual(args, arithmetic)."""
    args, (_, autodiff) = at[rule.name], rule.programs(at[rule.name])

    def in_float64(args):
        return run_manual(args, Float64())

    by_bounds = judges.within_bounds(run_manual(args, BOUNDS), autodiff.run(args, BOUNDS)).ok
    by_allclose = passes_allclose(in_float64(args), autodiff.run(args, Float64()))
    return not by_bounds, not by_allclose, not passes_check_grads(rule, in_float64, args)


for rule in MUTATED:  # no false alarm
    assert not any(seen_by(rule, rule.programs(at[rule.name])[0].run)), rule
share = {}
print("change     mutants  error bounds      allclose     check_vjp")
for group, kinds in GROUPS.items():
    verdicts = [
        seen_by(rule, lambda args, a: mutant.run(rule.programs(args)[0], args, a))
        for rule, mutant in killed
        if mutant.kind in kinds
    ]
    share[group] = np.mean(verdicts, axis=0)
    seen = "".join(f"{each:>14.0%}" for each in share[group])
    print(f"{group:<10}{len(verdicts):>8}{seen}")

fig, axis = plt.subplots(figsize=(9, 4.2))
for number, (name, colour) in enumerate(
    (("error bounds", GREEN), ("allclose, 1e-5", RED), ("check_vjp, float32", GREY))
):
    heights = [100 * each[number] for each in share.values()]
    places = np.arange(len(share)) + 0.27 * (number - 1)
    bars = axis.bar(places, heights, width=0.25, color=colour, label=name)
    axis.bar_label(bars, [f"{height:.0f}" for height in heights], fontsize=9, padding=1)
axis.set_xticks(range(len(share)), share)
axis.set(xlabel="change of one equation", ylabel="mutants seen (%)", ylim=(0, 112))
axis.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.16))
fig.suptitle("The same wrong gradients under three judges, at one random point")
plt.show()
every = np.array(list(share.values()))
assert (every[:, 0] > 0.9).all() and every[-1, 2] < 0.5 and every[-1, 1] < every[-1, 0]

# %% [markdown]
# What one draw misses, such as `z >= 0` for `z > 0`, the six draws of the judge see, ties among
# them: each of the mutants counted here was killed by one of them.
#
# ## 8. Where autodiff itself is wrong: the edge table
#
# Autodiff differentiates the program, not the function. Three things go wrong:
#
# - **cancellation**: $\tanh' = 1 - \tanh^2$. In float32 $\tanh 10$ rounds to 1 and the difference
#   to 0; the truth is $8.2 \times 10^{-9}$. The same derivative written
#   $4 e^{-2|z|} / (1 + e^{-2|z|})^2$ keeps all its digits;
# - **0 · ∞**: the derivative of an intermediate overflows where the function is tame. In
#   $\log \sigma(-200)$ the sigmoid underflows to 0, its logarithm has the derivative $1/0$, and the
#   product with $\sigma' = 0$ is NaN; the truth is 1;
# - **kinks and selections**: `maximum(z, 0)` has $g'(0) = \tfrac12$ for JAX, `relu` has 0.
#
# At such points agreement with autodiff is no criterion. Each spec of `verify` lists its own, with
# the value that is right there, from mathematics, or the convention that it states where there is
# a choice. Here is one row of each family in which autodiff gives another value, in float32, with
# what both sides give *now*. `python -m verify` judges all rows of the table.

# %%
picked = {}
for family, edge in edges.table():
    errs = edges.shown(edge.stated) != edges.shown(edge.recorded)
    if errs and edge.dtype == "float32":
        picked.setdefault(family, edge)


@jax.jit
def at_the_edges(points):
    """(by hand, by autodiff) at every edge: one program for all, since compiling is what costs."""
    pairs = zip(picked.values(), points, strict=True)
    return [(edge.manual(point), edge.autodiff(point)) for edge, point in pairs]


points = [jnp.asarray(edge.point, jnp.float32) for edge in picked.values()]
rows = ["| family | function | at | stated | by hand | jax.grad |", "|---" * 6 + "|"]
for (family, edge), values in zip(picked.items(), at_the_edges(points), strict=True):
    stated, ours, theirs = (", ".join(edges.shown(each)) for each in (edge.stated, *values))
    function = edge.function.replace("|", "\\|")
    point = ", ".join(f"{each:g}" for each in np.ravel(edge.point))
    rows.append(f"| {family} | {function} | {point} | {stated} | {ours} | **{theirs}** |")
    assert ours == stated, edge
    if theirs != ", ".join(edges.shown(edge.recorded)):
        print(f"this JAX differs from the record at {function}: {theirs}")
display(Markdown("\n".join(rows)))
print(f"{len(picked)} rows of the {len(edges.table())} in the table")

# %%
tails = {
    "tanh": (mbp.tanh, jnp.tanh, 2, 46),
    "sigmoid": (mbp.sigmoid, jax.nn.sigmoid, 1, 92),
}
fig, axes = plt.subplots(1, 2, figsize=(11, 4.2))
for axis, (name, (by_hand, function, rate, last)) in zip(axes, tails.items(), strict=True):
    z = jnp.linspace(0, last, 369, dtype=jnp.float32)
    ours, theirs = jax.jit(lambda z: (by_hand.derivative(z), jax.vmap(jax.grad(function))(z)))(z)
    decay = np.exp(-rate * np.asarray(z, np.float64))
    truth = rate**2 * decay / (1 + decay) ** 2  # tanh'(z) = 4 sigmoid'(2 z)
    zero = float(z[np.argmax(np.asarray(theirs) == 0)])
    normal = decay > np.finfo(np.float32).tiny  # below this float32 has fewer digits, or none
    error = np.abs(np.asarray(ours, np.float64) / truth - 1)[normal].max()
    print(f"{name}': by hand within {error:.0e} of the truth; autodiff is 0 from z = {zero:g} on")
    assert error < 1e-5 and zero < 20
    axis.semilogy(z, truth, color=GREY, linewidth=5, alpha=0.4, label="truth (float64)")
    shown = np.where(np.asarray(theirs) > 0, theirs, np.nan)
    axis.semilogy(z, shown, color=ORANGE, linewidth=2.6, label="autodiff, float32")
    axis.semilogy(z, ours, color=BLUE, linewidth=1.2, label="by hand, float32")
    axis.axvline(zero, color=ORANGE, linestyle=":", linewidth=1.5)
    axis.text(zero + 0.02 * last, 1e-27, "autodiff: exactly 0\nfrom here on", fontsize=10)
    axis.set(xlabel="$z$", ylabel=f"{name}$'(z)$", xlim=(0, last), ylim=(1e-40, 30))
    axis.legend(fontsize=9.5, loc="upper right")
fig.suptitle("A saturated unit has a small derivative, not none")
plt.show()

# %% [markdown]
# Both curves by hand end where float32 ends, near $10^{-38}$: compiled code rounds smaller numbers
# to 0. The tail of $1 - \tanh^2$ ended at $10^{-7}$.
#
# ## 9. How accurate: error over depth, and ulps
#
# Being right is one thing, being accurate another. Both gradients are compiled in float32 and
# compared with float64 at the same float32 inputs, for tanh networks of 1 to 32 layers of 16 units.
# Errors are pooled over the whole gradient,
# $\lVert \text{float32} - \text{float64} \rVert / \lVert \text{float64} \rVert$: entry by entry the
# ratio of two rounding errors is noise.

# %%
depths, draws = (1, 2, 4, 8, 16, 32), 6
of_depth = [
    rules.of_case(
        Case(mbp.mlp([16] * depth + [10], hidden=mbp.tanh), mbp.SoftmaxCrossEntropy(), (32, 16)),
        every_intermediate=False,
    )
    for depth in depths
]


def in_float32(tree):
    """Floats as float32; classes as they are."""
    return jax.tree.map(lambda leaf: np.float32(leaf) if leaf.dtype.kind == "f" else leaf, tree)


def problem_of(rule, seed):
    """Params, inputs and classes of 32 examples, floats in float32."""
    params, x, *_ = rule.draw(rules.generator(seed), "normal")
    return in_float32((params, x, rules.generator(seed).integers(10, size=32), None))


drawn = [[problem_of(rule, seed) for seed in range(draws)] for rule in of_depth]
stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *each) for each in drawn]


@jax.jit
def all_gradients(stacked):
    """[(by hand, by autodiff) of every draw] for each depth: one program."""
    return [
        (jax.vmap(rule.manual)(*args), jax.vmap(rule.autodiff)(*args))
        for rule, args in zip(of_depth, stacked, strict=True)
    ]


def flat(results):
    """All entries of the gradient, in one vector."""
    names = sorted(name for name in results if judges.is_gradient(name))
    return np.concatenate([np.ravel(np.asarray(results[name], np.float64)) for name in names])


pooled = np.zeros((2, len(depths), draws))
ulps = []
for d, (rule, pair) in enumerate(zip(of_depth, all_gradients(stacked), strict=True)):
    for n in range(draws):
        wide = jax.tree.map(
            lambda leaf: leaf.astype(np.float64) if leaf.dtype.kind == "f" else leaf, drawn[d][n]
        )
        truth = flat(rule.programs(wide)[1].run(wide, Float64()))
        ours, theirs = (flat({name: each[n] for name, each in side.items()}) for side in pair)
        for side, value in enumerate((ours, theirs)):
            pooled[side, d, n] = np.linalg.norm(value - truth) / np.linalg.norm(truth)
        if depths[d] <= 4:
            ulps.append(
                (ours - theirs) / np.spacing(np.float32(np.maximum(abs(ours), abs(theirs))))
            )
ulps = np.concatenate(ulps)
ratio = pooled[0] / pooled[1]
print(f"error by hand over autodiff's: median {np.median(ratio):.2f}, largest {ratio.max():.2f}")
print(f"ulps apart: {np.mean(ulps == 0):.0%} equal, {np.mean(abs(ulps) <= 2):.0%} within 2")
assert ratio.max() <= 2 and pooled.max() < 1e-5

# %% [markdown]
# The difference of the two in *ulps* (units in the last place of float32) is symmetric about 0.
# Entries in which large terms cancel are many ulps apart, in either program; the outermost bars
# hold them. With small integers as weights and inputs, a batch of a power of two and relus, every
# sum and product is exact, and nothing may differ at all, even compiled.

# %%
integers = rules.of_case(
    Case(mbp.mlp([5, 6, 4]), mbp.SquaredError(), (8, 5)), every_intermediate=False
)
lattice = [in_float32(integers.draw(rules.generator(seed), "lattice")) for seed in range(50)]
lattice = jax.tree.map(lambda *leaves: np.stack(leaves), *lattice)
ours, theirs = jax.jit(
    lambda args: (jax.vmap(integers.manual)(*args), jax.vmap(integers.autodiff)(*args))
)(lattice)
apart = np.abs(flat(ours) - flat(theirs))
print(f"integers: {apart.size} entries, {np.count_nonzero(apart)} differ")
assert np.count_nonzero(flat(theirs)) > apart.size / 4 and not apart.any()

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.3))
for side, (name, colour, width) in enumerate((("by hand", BLUE, 1.5), ("autodiff", ORANGE, 4))):
    middle = np.median(pooled[side], axis=1)
    left.loglog(
        depths, middle, "o-", color=colour, lw=width, label=f"{name}, median", zorder=2 - side
    )
    low, high = pooled[side].min(axis=1), pooled[side].max(axis=1)
    left.fill_between(depths, low, high, color=colour, alpha=0.2, linewidth=0)
left.axhline(2.0**-24, color=GREY, linestyle="--", linewidth=1)
left.text(32, 1.06 * 2.0**-24, "u of float32", color="#333333", ha="right", fontsize=9.5)
left.set_xscale("log", base=2)
left.set_xticks(depths, depths)
left.set(xlabel="depth (layers of 16 units)", ylabel="error against float64, pooled, relative")
left.legend(loc="upper left")
edge = 8
bins = np.arange(-edge - 0.5, edge + 1)
weights = np.full(ulps.size, 100 / ulps.size)
right.hist(np.clip(ulps, -edge, edge), bins, weights=weights, color=BLUE, edgecolor="white")
right.set_xticks([-8, -4, 0, 4, 8], ["≤ −8", "−4", "0", "4", "≥ 8"])
right.set(xlabel="by hand − autodiff (ulp of float32)", ylabel="entries of the gradient (%)")
right.set_title(f"{ulps.size} entries, depths 1 to 4")
fig.suptitle("By hand is as accurate as autodiff")
plt.show()

# %% [markdown]
# ## 10. Your own rule in five lines
#
# All this is there for anybody's own backward pass. `verify.check(forward, backward, params, x)`
# takes two functions,
#
# $$\text{out}, \text{residuals} = \texttt{forward}(\text{params}, x), \qquad
# d\text{params}, dx = \texttt{backward}(\text{params}, \text{residuals}, d\text{out}),$$
#
# draws a random `dout`, and runs both sides with error bounds: at the numbers given, near them, and
# rounded so that kinks tie.


# %%
def forward(W, x):
    return jnp.tanh(x @ W), (x, jnp.tanh(x @ W))


def backward(W, residuals, dout):
    dz = dout * (1 - residuals[1] ** 2)
    return residuals[0].T @ dz, dz @ W.T


W, x = rng.normal(size=(4, 4)), rng.normal(size=(6, 4))
print(verify.check(forward, backward, W, x))
assert verify.check(forward, backward, W, x)

# %% [markdown]
# Of a wrong one it names the first wrong result and, where it knows the mistake, the likely cause.


# %%
def transposed(W, residuals, dout):
    dW, dx = backward(W, residuals, dout)
    return dW.T, dx


def wrong_sign(W, residuals, dout):
    dW, dx = backward(W, residuals, dout)
    return dW, -dx


def no_derivative(W, residuals, dout):
    return residuals[0].T @ dout, dout @ W.T


def not_summed(params, residuals, dout):
    dparams, dx = layer_norm_backward(params, residuals, dout)
    return {**dparams, "shift": dout}, dx


scales = {"scale": rng.normal(size=4), "shift": rng.normal(size=4)}
WRONG = {
    "layer norm, the mean's term dropped": (layer_norm, norm_backward(mean=0), scales),
    "layer norm, the shift's error not summed": (layer_norm, not_summed, scales),
    "dense, dW transposed": (forward, transposed, W),
    "dense, dx negated": (forward, wrong_sign, W),
    "dense, tanh' left out": (forward, no_derivative, W),
}
for name, (its_forward, its_backward, its_params) in WRONG.items():
    result = verify.check(its_forward, its_backward, its_params, x)
    print(f"--- {name}\n{result}\n")
    assert not result
mean_dropped = verify.check(layer_norm, norm_backward(mean=0), scales, x)
assert mean_dropped.first_wrong == "dx" and "mean" in mean_dropped.cause

# %% [markdown]
# `verify.check_grads(manual_fn, loss_fn, params, *args)` is for a function that returns the
# gradient of a scalar loss. The mistake below is the commonest of all.


# %%
def squared_error(w, x, y):
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def its_gradient(w, x, y):
    return x.T @ (x @ w - y) / len(y)


def without_m(w, x, y):
    return x.T @ (x @ w - y)


w, y = rng.normal(size=4), rng.normal(size=6)
print(verify.check_grads(its_gradient, squared_error, w, x, y), "\n")
forgot = verify.check_grads(without_m, squared_error, w, x, y)
print(forgot)
assert verify.check_grads(its_gradient, squared_error, w, x, y)
assert not forgot and "1/6 missing" in forgot.cause

# %% [markdown]
# ## 11. Exercises
#
# **Exercise 1.** Softmax, $a_i = e^{z_i} / \sum_c e^{z_c}$ over the last axis, has the Jacobian
# $\partial a_j / \partial z_i = a_j (\delta_{ij} - a_i)$. Write its backward pass and let
# `verify.check` judge it. There are no parameters: `params` and `dparams` are `()`.


# %%
def softmax(params, z):
    a = jax.nn.softmax(z)
    return a, a


def my_softmax_backward(params, a, dout):
    """(dparams, dz)."""
    dz = None
    return (), dz


def judge_softmax(backward):
    """What verify.check says, once the exercise is filled in."""
    if backward((), jnp.ones((1, 1)), jnp.ones((1, 1)))[1] is None:
        return "not filled in yet"
    return verify.check(softmax, backward, (), x)


print(judge_softmax(my_softmax_backward))

# %% [markdown]
# **Exercise 2** (on paper).
#
# a. A colleague tests a batch-norm layer by `jax.grad(lambda x: batch_norm(x).sum())`. What does
# the test see?
#
# b. The V-curve of the *forward* difference, $(J(\theta + hV) - J(\theta))/h$: where is its bottom,
# and how low?
#
# c. Two summation orders of the same $n = 1000$ float64 numbers, all of size one. By how much may
# the results differ at most?
#
# d. A mutant scales the result of $z \mapsto |z|$ by 2, and only the comparison $|z| > 0$ uses it.
# Which judge kills it?
#
# e. At 20 digits two programs differ by $10^{-21}$, at 40 by $10^{-23}$. What do you conclude?
#
# <details>
# <summary>Answers</summary>
#
# a. Nothing about $dx$: with the scale at its initial 1, the true $dx$ is zero, and so is that of a
# backward pass which returns zeros. It does see a backward pass whose $dx$ is *not* zero.
#
# b. Truncation is $\tfrac h2 |J''|$, rounding about $u |J| / h$; they are equal near $h = u^{1/2}
# \approx 10^{-8}$, and the error there is about $10^{-8}$.
#
# c. Each errs by at most $\gamma_{999} \sum_i |a_i| \approx 999\, u \cdot 1000 \approx 1.1 \times
# 10^{-10}$, so the two by at most twice that, $2.2 \times 10^{-10}$. (What one sees is about
# $\sqrt{n}\,u \sum |a_i|$, thirty times less.)
#
# d. None. It computes the same function: $2|z| > 0$ just where $|z| > 0$. This is the class "sign
# test".
#
# e. They do not compute the same function: something is off by about $10^{-23}$. The difference
# lost 2 of 20 decades; rounding alone would have lost them all.
#
# </details>
#
# A solution to exercise 1. Contracting the Jacobian with `dout` gives
# $dz = a \odot (d\text{out} - \sum_j a_j\, d\text{out}_j)$.


# %%
def softmax_backward(params, a, dout):
    return (), a * (dout - (a * dout).sum(-1, keepdims=True))


print(judge_softmax(softmax_backward))
assert judge_softmax(softmax_backward)

# %% [markdown]
# ## Sources
#
# - N. J. Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd edition (2002), chapters 2
#   and 3: unit roundoff, $\gamma_n$, error analysis of sums and dot products.
# - R. A. DeMillo, R. J. Lipton, F. G. Sayward, *Hints on test data selection: help for the
#   practicing programmer*, Computer 11 (1978): mutants.
# - J. L. Ba, J. R. Kiros, G. E. Hinton, *Layer normalization* (2016), arXiv:1607.06450.
# - D. Goldberg, *What every computer scientist should know about floating-point arithmetic*, ACM
#   Computing Surveys 23 (1991): ulps, cancellation.
# - F. Johansson and others, *mpmath: a Python library for arbitrary-precision floating-point
#   arithmetic*: the digits.
