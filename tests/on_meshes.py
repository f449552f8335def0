"""The program of test_meshes.py, for a process of its own with 8 virtual devices.

It prints a line for each finding, and at last how many programs it ran. Everything is in float64
and judged by the error bounds of the one-device program, which hold for any order of summation.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import manual_bp as mbp
from verify import rules
from verify.arithmetic.rounding import Bounded
from verify.interpreter import trace
from verify.judges import BOUNDS, within_bounds
from verify.rules import Rule, flat, generator

jax.config.update("jax_enable_x64", True)
DEVICES = {"data": 4, "tensor": 2}
EXPLICIT, AUTO = (
    jax.make_mesh(tuple(DEVICES.values()), tuple(DEVICES), axis_types=(kind,) * 2)
    for kind in (AxisType.Explicit, AxisType.Auto)
)


def leaf_of(array: Any) -> Any:
    """A JAX array of it; typed keys as they are."""
    return array if isinstance(array, jax.Array) else jnp.asarray(array)


def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def drawn(rule: Rule) -> Any:
    """Arguments of the rule; of piecewise polynomials on the lattice, where bounds are finite."""
    return jax.tree.map(leaf_of, rule.draw(generator(7), "lattice" if rule.exact else "normal"))


def of_examples(rule: Rule, args: Any) -> Any:
    """For each argument its PartitionSpec with the examples along "data"; P() for params."""
    named = rule.names(*args)
    has_params = named[0] == "out" or rule.cotangent == 3
    m = jax.tree.leaves(args[int(has_params)])[0].shape[0]

    def spec(path: Any, leaf: Any) -> P:
        shared = any(jax.tree_util.keystr((key,)) in ("['statistics']", "['key']") for key in path)
        if (has_params and path[0].idx == 0) or shared or is_key(leaf):
            return P()
        if leaf.shape[:1] == (m,):
            return P("data")
        return P(None, "data") if leaf.shape[1:2] == (m,) else P()

    return jax.tree_util.tree_map_with_path(spec, args)


def placed(mesh: Any, args: Any, specs: Any, *, abstract: bool = False) -> Any:
    """The arguments, or their types, on the mesh."""

    def one(leaf: Any, spec: P) -> Any:
        if is_key(leaf):
            return leaf
        sharding = NamedSharding(mesh, spec)
        if abstract:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        return jax.device_put(leaf, sharding)

    return jax.tree.map(one, args, specs)


def placed_apart(rule: Rule, args: Any, specs: Any) -> dict[str, Any]:
    """Other ways to place the arguments, as a caller may have forgotten to, or wanted to."""
    first = int(rule.cotangent == 3 or rule.names(*args)[0] == "out")
    whole = [jax.tree.map(lambda leaf: P(), each) for each in args]

    def second(leaf: Any, spec: P) -> P:
        even = spec == P("data") and leaf.ndim > 1 and leaf.shape[1] % DEVICES["tensor"] == 0
        return P("data", "tensor") if even else spec

    return {
        "x alone divided": (*specs[: first + 1], *whole[first + 1 :]),
        "all but x divided": (*whole[: first + 1], *specs[first + 1 :]),
        "second axes divided": (
            *specs[:first],
            *jax.tree.map(second, tuple(args[first:]), tuple(specs[first:])),
        ),
    }


def numbers(results: Any) -> Any:
    """Without the gradients of integers, which are none."""
    return {name: each for name, each in results.items() if each.dtype != jax.dtypes.float0}


def judge(what: str, found: Any, expected: Any) -> None:
    ours = {name: Bounded(np.asarray(each), expected[name].bound) for name, each in found.items()}
    verdict = within_bounds(ours, {name: expected[name] for name in found})
    if not verdict.ok:
        print(f"{what}: {verdict}")


def spec_of(array: Any) -> tuple[Any, ...]:
    """The mesh axes of each of its axes, without trailing None."""
    spec = tuple(jax.typeof(array).sharding.spec)
    while spec and spec[-1] is None:
        spec = spec[:-1]
    return spec


def check_places(what: str, rule: Rule, args: Any, found: Any) -> None:
    """Say of which gradients the place isn't that of what they are the gradients of."""
    first = rule.cotangent == 3 or rule.names(*args)[0] == "out"
    wanted = dict(flat("d", args[0])) if first else {}
    layer = rule.names(*args)[0] == "out"
    wanted["dx" if layer else "dprediction"] = args[int(first)]
    for name, like in wanted.items():
        if name in found and spec_of(found[name]) != spec_of(like):
            print(f"{what}: {name} lies {spec_of(found[name])}, not {spec_of(like)}")


def data_parallel(every: list[Rule], sampled: list[Rule]) -> None:
    """Examples along an Explicit axis: every rule is traced, and these are run."""
    run = {id(rule) for rule in sampled}
    programs, given, bounds = [], [], []
    for rule in every:
        what = f"Explicit, {rule}"
        args = drawn(rule)
        specs = of_examples(rule, args)
        types = placed(EXPLICIT, args, specs, abstract=True)
        with jax.set_mesh(EXPLICIT):
            try:
                found = jax.eval_shape(lambda *args, rule=rule: numbers(rule.manual(*args)), *types)
            except Exception as error:
                print(f"{what}: {error}")
                continue
        check_places(what, rule, types, found)
        if id(rule) in run:
            for name, apart in placed_apart(rule, args, specs).items():
                types = placed(EXPLICIT, args, apart, abstract=True)
                try:
                    with jax.set_mesh(EXPLICIT):
                        jax.eval_shape(lambda *args, rule=rule: numbers(rule.manual(*args)), *types)
                except Exception as error:
                    print(f"{what}, {name}: {error}")
            programs.append((what, rule))
            given.append(placed(EXPLICIT, args, specs))
            bounds.append(trace(rule.manual, *args).run(args, BOUNDS))

    def together(given: Any) -> Any:
        return [
            numbers(rule.manual(*args)) for (_, rule), args in zip(programs, given, strict=True)
        ]

    with jax.set_mesh(EXPLICIT):
        found = jax.jit(together)(given)
    for (what, _), each, expected in zip(programs, found, bounds, strict=True):
        judge(what, each, expected)


def local_gradients(every: list[Rule], sampled: list[Rule], *, check: bool) -> None:
    """Inside shard_map, with params the same on all devices: sums of what each of them found."""
    run = {id(rule) for rule in sampled}
    given, chosen = [], []
    for rule in every:
        args = drawn(rule)
        specs = of_examples(rule, args)

        def local(*args: Any, rule: Rule = rule) -> Any:
            return {name: each[None] for name, each in numbers(rule.manual(*args)).items()}

        mapped = jax.shard_map(
            local, mesh=AUTO, in_specs=specs, out_specs=P("data"), check_vma=check
        )
        try:
            jax.eval_shape(mapped, *args)
        except Exception as error:
            print(f"shard_map, check_vma={check}, {rule}: {error}")
            continue
        # A key draws the same numbers on each device, and statistics are each device's own.
        named = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(args)]
        alone = not rule.mixes and not any("['key']" in name for name in named)
        if id(rule) in run and alone:
            given.append(args)
            chosen.append((rule, mapped))
    found = jax.jit(lambda given, c=chosen: [f(*a) for (_, f), a in zip(c, given, strict=True)])(
        given
    )
    for (rule, _), args, each in zip(chosen, given, found, strict=True):
        expected = trace(rule.manual, *args).run(args, BOUNDS)
        whole = {name: assembled(np.asarray(each[name]), expected[name]) for name in each}
        judge(f"shard_map, check_vma={check}, {rule}", whole, expected)


def states_made_inside() -> None:
    """A state that doesn't vary beside an x that does, as zeros made inside shard_map don't."""
    x = jnp.ones((8, 3, 2))
    for kind in (mbp.RNN, mbp.GRU, mbp.LSTM, mbp.LinearRecurrence):
        layer = kind(stateful=True) if kind is mbp.LinearRecurrence else kind(2, stateful=True)

        def local(x: Any, layer: Any = layer) -> Any:
            params = layer.init(jax.random.key(0), x)
            like = layer.forward(params, jnp.ones(x.shape), state=None)[1].final
            state = jax.tree.map(jnp.ones_like, like)
            out, residuals = layer.forward(params, x, state=state)
            return layer.backward(params, residuals, out)[1]

        try:
            jax.eval_shape(
                jax.shard_map(local, mesh=AUTO, in_specs=P("data"), out_specs=P("data")), x
            )
        except Exception as error:
            print(f"{layer!r}, a state made inside: {error}")


def assembled(each: np.ndarray, expected: Any) -> np.ndarray:
    """One array of the devices' (4, ...): the sum, or rows beside each other."""
    shape = expected.value.shape
    grown = [axis for axis, size in enumerate(shape) if size != each.shape[axis + 1]]
    return np.concatenate(each, grown[0]) if grown else each.sum(0)


def networks() -> dict[str, tuple[Any, Any, Any, Any, Any]]:
    """By name: a network, its loss, x, y, and the ways to divide its params."""
    tokens = np.arange(32).reshape(8, 4) % 16
    x = np.random.default_rng(2).normal(size=(8, 16))
    small: Any = {"context": 4, "width": 8, "depth": 2, "heads": 2}
    classes = tokens[:, 0] % 8
    return {
        "mlp": (
            mbp.mlp([16, 32, 8], hidden=mbp.tanh),
            mbp.SoftmaxCrossEntropy(),
            x,
            classes,
            (rows, columns, fully, fully_and_tensor, alternately),
        ),
        "gpt": (
            mbp.gpt(16, **small),
            mbp.SoftmaxCrossEntropy(),
            tokens,
            (3 * tokens) % 16,
            (columns, fully_and_tensor, alternately),
        ),
        "gpt, fused head": (
            mbp.gpt(16, block=2, head=False, **small),
            mbp.LinearCrossEntropy(16, chunk=3),
            tokens,
            (3 * tokens) % 16,
            (rows, fully),
        ),
    }


def rows(leaf: Any) -> tuple[Any, ...]:
    """The mesh axis "tensor" for the rows of a matrix, or for the one axis of a vector."""
    return (*(None,) * (leaf.ndim - 2), "tensor", None) if leaf.ndim > 1 else ("tensor",)


def columns(leaf: Any) -> tuple[Any, ...]:
    return (*(None,) * (leaf.ndim - 1), "tensor")


def fully(leaf: Any) -> tuple[Any, ...]:
    """Along the axis of the examples too."""
    return ("data", *(None,) * (leaf.ndim - 1))


def fully_and_tensor(leaf: Any) -> tuple[Any, ...]:
    if leaf.ndim < 2:
        return ("data",)
    return (*(None,) * (leaf.ndim - 2), "tensor", "data")


def alternately(leaf: Any) -> tuple[Any, ...]:
    """Layers that widen by rows, those that narrow by columns, which needs one sum for two."""
    return rows(leaf) if leaf.ndim < 2 or leaf.shape[-2] >= leaf.shape[-1] else columns(leaf)


def fitting(leaf: Any, names: tuple[Any, ...]) -> P:
    """Those that divide their axis; the others divide nothing."""
    return P(
        *(
            name if name and size % DEVICES[name] == 0 else None
            for name, size in zip(names[: leaf.ndim], leaf.shape, strict=True)
        )
    )


def divided_layers(every: list[Rule]) -> None:
    """Of each layer a sample whose params can be divided, in every way: it is traced."""
    seen: set[Any] = set()
    for rule in every:
        args = drawn(rule)
        if rule.names(*args)[0] != "out":
            continue
        _, *others = of_examples(rule, args)
        for place in (rows, columns, fully, fully_and_tensor):
            specs = jax.tree.map(lambda leaf, p=place: fitting(leaf, p(leaf)), args[0])
            if (rule.family, place) in seen or not any(map(any, jax.tree.leaves(specs))):
                continue
            seen.add((rule.family, place))
            what, types = (
                f"{place.__name__}, {rule}",
                placed(EXPLICIT, args, (specs, *others), abstract=True),
            )
            try:
                with jax.set_mesh(EXPLICIT):
                    found = jax.eval_shape(lambda *args, r=rule: numbers(r.manual(*args)), *types)
            except Exception as error:
                print(f"{what}: {error}")
                continue
            check_places(what, rule, types, found)


def divided_params() -> None:
    """Networks with their parameters divided in every way, and the examples beside."""
    programs, given, bounds = [], [], []
    for name, (network, loss, x, y, places) in networks().items():
        params = jax.eval_shape(network.init, jax.random.key(0), x)
        if loss.parametric:
            out = jax.eval_shape(lambda *args, n=network: n.forward(*args)[0], params, x)
            params = params, jax.eval_shape(loss.init, jax.random.key(0), out)
        draw = np.random.default_rng(3)
        params = jax.tree.map(lambda leaf, r=draw: jnp.asarray(r.normal(size=leaf.shape)), params)

        def step(params: Any, x: Any, y: Any, network: Any = network, loss: Any = loss) -> Any:
            found = mbp.manual_pass(params, x, y, network=network, loss=loss)
            return numbers({"J": found.loss, **flat("d", found.grads), "dx": found.dx})

        expected = trace(step, params, x, y).run((params, x, y), BOUNDS)
        for place in places:
            what = f"{name}, {place.__name__}"
            specs = jax.tree.map(lambda leaf, p=place: fitting(leaf, p(leaf)), params)
            args = placed(EXPLICIT, (params, x, y), (specs, P("data"), P("data")))
            wanted = {**flat("d", args[0]), "dx": args[1]}
            for context in (jax.set_mesh(EXPLICIT), contextlib.nullcontext()):
                with context:
                    found = jax.eval_shape(step, *args)
                    own = args[0][0] if loss.parametric else args[0]
                    jax.eval_shape(lambda *args, n=network: mbp.predict(*args, network=n), own, x)
            for result, like in wanted.items():
                if result in found and spec_of(found[result]) != spec_of(like):
                    print(f"{what}: {result} lies {spec_of(found[result])}, not {spec_of(like)}")
            programs.append((what, step))
            given.append(args)
            bounds.append(expected)
    found = jax.jit(lambda given: [f(*a) for (_, f), a in zip(programs, given, strict=True)])(given)
    for (what, _), each, expected in zip(programs, found, bounds, strict=True):
        judge(what, each, expected)


ALONE = ("MultiHeadAttention", "LSTM", "Embedding", "LinearCrossEntropy", "Stack", "Dense")
"""What is also run with check_vma=False; everything else is traced."""

if __name__ == "__main__":
    assert len(jax.devices()) == 8
    every = rules.of_specs(batch=4)
    sampled = rules.one_of_each(every)
    data_parallel(every, sampled)
    local_gradients(every, sampled, check=True)
    few = [rule for rule in sampled if rule.family in ALONE]
    local_gradients(every, few, check=False)
    states_made_inside()
    divided_layers(every)
    divided_params()
    print(f"judged {len(every)} rules")
