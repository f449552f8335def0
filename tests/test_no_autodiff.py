"""No autodiff in manual_bp: its syntax trees may use the names listed here, and no other."""

import ast
import pathlib

import pytest

import manual_bp

ROOT = pathlib.Path(manual_bp.__file__).parent

MODULES = {
    "collections",
    "collections.abc",
    "contextlib",
    "dataclasses",
    "functools",
    "math",
    "re",
    "types",
    "typing",
    "__future__",
    "jax",
    "jax.numpy",
    "numpy",
}

FROM_OTHERS = {"optax.GradientTransformationExtraArgs"}
"""What may be imported from elsewhere: a NamedTuple of two functions."""

JAX_NAMES = {
    "jax.lax.associative_scan",
    "jax.Array",
    "jax.ShapeDtypeStruct",
    "jax.dtypes.canonicalize_dtype",
    "jax.dtypes.float0",
    "jax.dtypes.prng_key",
    "jax.eval_shape",
    "jax.jit",
    "jax.lax.conv_general_dilated",
    "jax.lax.add",
    "jax.lax.dynamic_index_in_dim",
    "jax.lax.dynamic_slice_in_dim",
    "jax.lax.dynamic_update_slice_in_dim",
    "jax.lax.erf",
    "jax.lax.erfc",
    "jax.lax.pad",
    "jax.lax.reduce_window",
    "jax.lax.platform_dependent",
    "jax.lax.psum",
    "jax.sharding.NamedSharding",
    "jax.sharding.PartitionSpec",
    "jax.sharding.reshard",
    "jax.shard_map",
    "jax.lax.pcast",
    "jax.lax.rsqrt",
    "jax.lax.slice_in_dim",
    "jax.lax.optimization_barrier",
    "jax.lax.scan",
    "jax.nn.initializers.glorot_uniform",
    "jax.nn.initializers.he_normal",
    "jax.nn.initializers.lecun_normal",
    "jax.nn.initializers.normal",
    "jax.nn.initializers.orthogonal",
    "jax.nn.sigmoid",
    "jax.nn.softmax",
    "jax.random.bits",
    "jax.random.fold_in",
    "jax.random.key",
    "jax.random.normal",
    "jax.random.rademacher",
    "jax.random.split",
    "jax.random.uniform",
    "jax.scipy.linalg.cho_solve",
    "jax.tree.flatten",
    "jax.tree.leaves",
    "jax.tree.map",
    "jax.tree.unflatten",
    "jax.tree_util.keystr",
    "jax.tree_util.register_dataclass",
    "jax.tree_util.register_static",
    "jax.tree_util.tree_leaves_with_path",
    "jax.typeof",
    "jax.vmap",
}

ATTACHING = {
    "jax.custom_derivatives.CustomVJPPrimal",
    "jax.custom_derivatives.SymbolicZero",
    "jax.custom_jvp",
    "jax.custom_vjp",
}
"""What manual_bp/interop may use too: it hands rules to other people's autodiff, and uses none."""

ACTIVATION_NAMES = [
    "celu",
    "elu",
    "gelu",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "identity",
    "leaky_relu",
    "log_sigmoid",
    "relu",
    "relu6",
    "selu",
    "silu",
    "soft_sign",
    "softplus",
    "tanh",
]

OF_ONE_FILE = {
    "interop/one_example.py": {
        "jax.custom_batching.custom_vmap",
        "jax.extend.core.take_current_trace",
    },
    "interop/equinox/": {
        "equinox.filter_eval_shape",
        "equinox.is_array",
        "equinox.tree_at",
        *(
            f"equinox.nn.{name}"
            for name in [
                "BatchNorm",
                "Conv",
                "Conv1d",
                "Conv2d",
                "Conv3d",
                "Embedding",
                "GRUCell",
                "GroupNorm",
                "LSTMCell",
                "Lambda",
                "LayerNorm",
                "Linear",
                "MLP",
                "MultiheadAttention",
                "RMSNorm",
                "Sequential",
                "State",
                "make_with_state",
            ]
        ),
        *(f"jax.nn.{name}" for name in (*ACTIVATION_NAMES, "mish", "squareplus")),
    },
    "interop/flax/": {
        *(
            f"flax.nnx.{name}"
            for name in [
                "BatchNorm",
                "BatchStat",
                "Conv",
                "Embed",
                "GRUCell",
                "GroupNorm",
                "LSTMCell",
                "LayerNorm",
                "Linear",
                "LinearGeneral",
                "MultiHeadAttention",
                "OptimizedLSTMCell",
                "Param",
                "RMSNorm",
                "RNN",
                "Rngs",
                "Sequential",
                "SimpleCell",
                "dot_product_attention",
                "nn.dtypes.promote_dtype",
                "sigmoid",
                "hard_swish",
                "swish",
            ]
        ),
        *(f"flax.nnx.{name}" for name in ACTIVATION_NAMES),
        "jax.lax.dot_general",
        "jax.lax.stop_gradient",
    },
}
"""What these alone may use beside: modules of other libraries, by the names that we subclass and
convert, and nothing of theirs that differentiates."""

LIBRARIES = {"jax", "flax", "equinox"}
THEIR_MODULES = {"equinox", "flax.nnx", "jax.extend.core"}

FORBIDDEN_CALLS = {"getattr", "eval", "exec", "compile", "__import__", "globals", "vars"}


def offences(source: str, also: frozenset[str] = frozenset()) -> list[str]:
    """What in this source may not stand in manual_bp; `also` may, beside what is listed."""
    tree = ast.parse(source)
    aliases: dict[str, str] = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                theirs = alias.name in THEIR_MODULES and any(
                    name.startswith(f"{alias.name}.") for name in also
                )
                ours = alias.name in MODULES or alias.name.startswith("manual_bp")
                if not ours and not theirs:
                    found.append(f"import {alias.name}")
                bound = alias.asname or alias.name.split(".")[0]
                aliases[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.startswith("jax") or (
                module not in MODULES and not module.startswith("manual_bp")
            ):
                found += [
                    f"from {module} import {alias.name}"
                    for alias in node.names
                    if f"{module}.{alias.name}" not in FROM_OTHERS
                ]
    inner = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in inner:
            name = dotted(node, aliases)
            if name and name.startswith("jax.numpy."):
                if name.count(".") > 2 and name.split(".")[2] != "linalg":
                    found.append(name)
            elif name and name.split(".")[0] in LIBRARIES and not allowed(name, also):
                found.append(name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            library = aliases.get(node.id, "").split(".")[0]
            if library in LIBRARIES and bare(node, tree):
                found.append(f"{node.id} as a value")
            if node.id in FORBIDDEN_CALLS and is_called_on_jax(node, tree, aliases):
                found.append(f"{node.id}(...)")
    return found


def dotted(node: ast.AST, aliases: dict[str, str]) -> str | None:
    """`jnp.linalg.norm` as "jax.numpy.linalg.norm", None for what isn't rooted at an import."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in aliases:
        return None
    return ".".join([aliases[node.id], *reversed(parts)])


def beside(path: str) -> frozenset[str]:
    """What the file at this path may use beside what all may."""
    found = set(ATTACHING if path.startswith("interop/") else ())
    return frozenset(
        found.union(*(names for where, names in OF_ONE_FILE.items() if path.startswith(where)))
    )


def allowed(name: str, also: frozenset[str]) -> bool:
    """Whether the name, or what it is an attribute of, is on a list (jax.Array.dtype)."""
    return any(name == each or name.startswith(f"{each}.") for each in JAX_NAMES | also)


def bare(name: ast.Name, tree: ast.AST) -> bool:
    """Whether a module is used as a value instead of through an attribute."""
    return not any(
        isinstance(node, ast.Attribute) and node.value is name for node in ast.walk(tree)
    )


def is_called_on_jax(name: ast.Name, tree: ast.AST, aliases: dict[str, str]) -> bool:
    """Whether getattr and its kin are called at all, getattr but with a plain literal name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.func is name:
            if name.id != "getattr":
                return True
            literal = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
            root = node.args[0]
            while isinstance(root, ast.Attribute):
                root = root.value
            return (isinstance(root, ast.Name) and root.id in aliases) or not (
                literal or isinstance(node.args[1], ast.Attribute)
            )
    return False


@pytest.mark.parametrize(
    "path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_manual_bp_uses_no_autodiff(path):
    assert offences(path.read_text(), beside(path.relative_to(ROOT).as_posix())) == []


def test_rules_are_handed_out_in_interop_alone():
    source = "import jax\nf = jax.custom_vjp(g)"
    assert offences(source)
    assert offences(source, frozenset(ATTACHING)) == []
    assert offences("import jax\nf = jax.vjp(g, 1.0)", frozenset(ATTACHING))


@pytest.mark.parametrize(
    "source",
    [
        "import flax.nnx as nnx\nf = nnx.grad(g)",
        "import flax.nnx as nnx\nf = nnx.value_and_grad(g)",
        "import flax.nnx as nnx\nf = nnx.custom_vjp(g)",
        "import flax.nnx as nnx\nf = nnx.nn.linear.jax.grad(g)",
        "import flax.nnx\nf = flax.nnx.vjp(g)",
        "import flax.nnx as nnx\nn = nnx\nf = n.grad(g)",
        "import flax.linen as nn",
        "from flax import nnx",
        "from flax.nnx import grad",
        "import equinox as eqx\nf = eqx.filter_grad(g)",
        "import equinox as eqx\nf = eqx.filter_custom_vjp(g)",
        "import equinox as eqx\nf = eqx.internal",
        "import equinox as eqx\nf = eqx.nn._mlp.jax.grad(g)",
        "import jax.extend.core\nf = jax.extend.core.jaxpr_as_fun(g)",
        "import jax\nf = jax.nn.jax.grad(g)",
        "import jax\nf = jax.vjp(g, 1.0)",
    ],
)
def test_what_other_libraries_differentiate_with_is_seen(source):
    everything = frozenset().union(ATTACHING, *OF_ONE_FILE.values())
    assert offences(source, everything), "the check let this pass"


def test_other_libraries_are_in_their_own_files_alone():
    source = "import flax.nnx as nnx\nf = nnx.Linear"
    assert offences(source, beside("interop/flax/linear.py")) == []
    for path in ("layers/dense.py", "interop/function.py", "interop/equinox/linear.py"):
        assert offences(source, beside(path))


def test_every_name_on_the_list_is_used():
    text = "\n".join(path.read_text() for path in ROOT.rglob("*.py"))
    for name in JAX_NAMES | ATTACHING:
        assert name in text, f"{name} is used nowhere: take it off the list"


@pytest.mark.parametrize(
    "source",
    [
        "import jax\nf = jax.grad(lambda x: x)",
        "import jax\nf = jax.value_and_grad(g)",
        "import jax as j\nf = j.vjp(g, 1.0)",
        "import jax\nf = jax.jvp(g, (1.0,), (1.0,))",
        "import jax\nf = jax.linearize(g, 1.0)",
        "import jax\nf = jax.linear_transpose(g, 1.0)",
        "import jax\nf = jax.jacfwd(g)",
        "import jax\nf = jax.jacrev(g)",
        "import jax\nf = jax.jacobian(g)",
        "import jax\nf = jax.hessian(g)",
        "import jax\nf = jax.custom_vjp(g)",
        "import jax\nf = jax.custom_jvp(g)",
        "import jax\nf = jax.closure_convert(g, 1.0)",
        "import jax\nf = jax.checkpoint(g)",
        "from jax import grad",
        "from jax import grad as g",
        "from jax import *",
        "import jax.experimental.jet",
        "from jax.experimental.jet import jet",
        "from jax.experimental import jet",
        "import jax.experimental.jet as jet",
        "import jax\nf = jax.experimental.jet.jet",
        "import jax\nf = jax.api_util",
        "import jax.interpreters.ad",
        "import jax.interpreters.ad as ad",
        "from jax.interpreters import ad",
        "import jax._src.api as api",
        "import jax\nf = jax._src.api.grad",
        "import jax\nf = jax.lax.custom_root(g)",
        "import jax.numpy as jnp\nf = jnp.jax.grad",
        "import jax.numpy as jnp\nf = jnp.vectorize.__globals__",
        "import jax\nf = getattr(jax, 'gr' + 'ad')",
        "import jax\nf = getattr(jax, 'grad')",
        "import jax\nf = vars(jax)['grad']",
        "import jax\ng = jax\nf = g.grad",
        "import importlib",
        "__import__('jax').grad",
        "exec('import jax')",
        "import optax",
        "from optax import second_order",
        "import flax",
        "from chex import *",
    ],
)
def test_every_way_of_differentiating_is_seen(source):
    assert offences(source), "the check let this pass"
