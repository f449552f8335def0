"""The ways that the other benchmarks measure compute the same gradients."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import attention, elementwise, gpt, groups, resnet, stack
from benchmarks.row import IDIOMATIC, OURS, SAME
from benchmarks.torch_ways import torch_way
from verify.judges import digits, same

SMALL = stack.Size(6, 3)


def assert_alike(ways, *names, judge=digits):
    ours = ways[OURS]
    floats = [n for n, each in enumerate(ours.args) if _floating(each)]

    def of(way):
        def run(*given):
            args = list(way.args)
            for n, each in zip(floats, given, strict=True):
                args[n] = jax.tree.unflatten(jax.tree.structure(args[n]), jax.tree.leaves(each))
            return jax.tree.leaves(way.function(*args))

        return run

    for name in names:
        judged = same(of(ours), of(ways[name]), *(ours.args[n] for n in floats), judge=judge)
        assert judged.ok, (name, judged)


def _floating(tree):
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", elementwise.SUBJECTS)
def test_layers_agree(name):
    ways = elementwise.ways(elementwise.SUBJECTS[name], (5, 4))
    assert_alike(ways, SAME, IDIOMATIC)


def test_attention_agrees():
    ways = attention.ways(2, 6, 2, torch=False)
    assert_alike(ways, SAME, IDIOMATIC, attention.WRITTEN_OUT)


@pytest.mark.parametrize("make", [stack.stack_ways, stack.reversible_ways, stack.checkpoint_ways])
def test_stacks_agree(make):
    ways = make(SMALL, depth=3)
    assert_alike(ways, SAME, IDIOMATIC if IDIOMATIC in ways else stack.PLAIN)


def test_residual_networks_agree():
    assert_alike(resnet.ways((2, 3), 1, batch=3, side=4), SAME, IDIOMATIC)


def test_gpts_agree():
    ways = gpt.ways(depth=2, width=8, heads=2, length=5, vocabulary=11, examples=2, block=2)
    (params, x, y), mean = ways[SAME].args, ways[SAME].function
    judged = same(
        lambda params: ways[OURS].function(params[0][:-1], x, y)[:4],
        lambda params: mean(params, x, y)[0][:4],
        params,
        judge=digits,
    )
    assert judged.ok, judged


def test_every_group_is_called_as_its_rows_are():
    assert all(name == make().name for name, make in groups.GROUPS.items())


def test_without_torch_its_way_is_left_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert torch_way(lambda torch: pytest.fail("made without torch")) == {}
