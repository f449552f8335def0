"""The ways that benchmarks/recurrent.py measures compute the same gradients."""

import pytest

from benchmarks import recurrent
from benchmarks.row import OURS, SAME
from verify import judges


@pytest.mark.parametrize("other", [SAME, recurrent.HOISTED])
@pytest.mark.parametrize("kind", recurrent.KINDS, ids=lambda kind: kind.layer.__name__)
def test_ways_agree(kind, other):
    ways = recurrent.ways(kind, recurrent.Size(steps=3, examples=2, inputs=2, units=2))
    judged = judges.same(ways[OURS].function, ways[other].function, *ways[OURS].args)
    assert judged.ok, judged
