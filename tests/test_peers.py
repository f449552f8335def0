"""flax and equinox as judges: they hold, and they see a layer that is wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from verify import judges, peers, rules
from verify.rules import generator

ROWS = peers.peers()


@pytest.mark.parametrize("peer", ROWS, ids=[peer.name for peer in ROWS])
def test_a_wrong_error_and_a_wrong_gradient_are_seen(peer):
    rule = peer.rule()
    args = rule.draw(generator(3), "normal")
    assert judges.bounds(rule, args).ok

    def with_changed(name):
        def manual(*args):
            results = rule.manual(*args)
            return results | {name: results[name] * (1 + 1e-6)}

        return dataclasses.replace(rule, manual=manual, _traced={})

    found = rule.manual(*_float32(args))
    names = [name for name in rule.names(*args) if name in found]
    assert "dx" in names
    names = [name for name in names if found[name].dtype != jax.dtypes.float0]  # of tokens
    for name in names:
        if name.endswith("bk"):  # 0: softmax ignores what is added to all scores of a query
            continue
        assert judges.bounds(with_changed(name), args).first_wrong == name


def _float32(args):
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float32) if leaf.dtype.kind == "f" else leaf, args
    )


def test_a_kernel_in_another_layout_is_seen():
    (conv,) = [peer for peer in ROWS if peer.name == "flax Conv"]

    def flipped(params, x):
        return conv.theirs(params._replace(W=jnp.flip(params.W, (0, 1))), x)

    rule = rules.of_layer(conv.ours, conv.shape, theirs=flipped)
    assert not judges.bounds(rule, rule.draw(generator(0), "normal")).ok
