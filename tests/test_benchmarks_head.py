"""The ways of the rows on heads, per-example gradients, diagnostics and modules agree."""

import jax
import pytest

import manual_bp as mbp
from benchmarks import clipping, diagnostics, interop, linear_cross_entropy, per_example
from benchmarks.measuring import temporary_bytes
from benchmarks.row import IDIOMATIC, MEMORY, OURS, SAME, Way
from verify.judges import bounds, digits, same

MODELS = {
    "dense": lambda: per_example.dense((6, 8, 3), 4),
    "conv": lambda: per_example.convolutional(5, 4, (4, 6), 2),
    "GPT": lambda: per_example.transformer(3, 8, 2, 11),
}


def of_jax(ways):
    return {name: way for name, way in ways.items() if isinstance(way, Way)}


def assert_alike(ours, *others, judge=bounds):
    """All ways give the same; integers among the arguments stay as they are."""
    floats = [number for number, each in enumerate(ours.args) if _floating(each)]

    def of(way):
        def run(*given):
            args = list(way.args)
            for number, each in zip(floats, given, strict=True):
                args[number] = each
            return way.function(*args)

        return run

    given = [ours.args[number] for number in floats]
    for other in others:
        judged = same(of(ours), of(other), *given, judge=judge)
        assert judged.ok, judged


def _floating(tree):
    return all(
        jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating) for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_norms_of_examples_are_the_same_in_all_ways(make):
    ways = of_jax(per_example.ways(make(), parts=(1, 2)))
    del ways[per_example.ONE_GRADIENT]
    assert_alike(*ways.values())


def test_norms_of_examples_need_no_more_memory_than_a_gradient():
    ways = per_example.ways(per_example.dense((64, 128, 128, 10), 32), ())
    row = per_example.group().rows[0]
    (target,) = (each for each in row.targets if each.quantity == MEMORY)
    ours, one = (
        temporary_bytes(way.function, *way.args)
        for way in (ways[OURS], ways[per_example.ONE_GRADIENT])
    )
    assert target.holds(ours / one)


def test_a_clipped_sum_is_what_vmap_makes():
    ways = clipping.ways((4, 5, 3), 6)
    assert_alike(ways[OURS], ways[SAME])


def test_a_step_with_diagnostics_is_the_same_step():
    ways = diagnostics.ways(mbp.mlp([4, 6, 3]), jax.numpy.ones((5, 4)))
    (*plain, none), (*diagnosed, found) = (
        jax.eval_shape(ways[name].function, *ways[name].args)
        for name in (diagnostics.WITHOUT, OURS)
    )
    assert found and not none
    assert plain == diagnosed


def test_a_head_is_the_same_in_all_ways():
    assert_alike(*of_jax(linear_cross_entropy.ways(16, 40, 5)).values(), judge=digits)


def test_every_row_of_modules_has_a_model_of_the_librarys_own():
    for row in interop.group().rows:
        assert all(target.against == IDIOMATIC for target in row.targets), row
        assert row.against_idiomatic
