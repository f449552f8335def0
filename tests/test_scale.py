"""Many devices: gradients on meshes, what devices tell each other, sums over a divided batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from jax.sharding import PartitionSpec as P

from verify.scale import __main__ as scale
from verify.scale import comparison
from verify.scale.collectives import Traffic, collectives, total
from verify.scale.meshes import auto_mesh, batch, fully_sharded, replicated, tensor_parallel

SECTIONS = {
    "gradients": 32,
    "collectives": 32,
    "known programs": 7,
    "sums over the batch": 19,
    "signals": 2,
    "shard_map": 8,
}
"""How many checks each has."""


@pytest.fixture(scope="module")
def found():
    """What `on_eight_devices.py` found, in a process of its own."""
    settings = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
    }
    program = Path(__file__).with_name("on_eight_devices.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("section", SECTIONS)
def test_on_eight_devices(found, section):
    assert {name: says for name, says in found[section].items() if says != "ok"} == {}
    assert len(found[section]) == SECTIONS[section]


def test_in_shard_map_the_other_sum_is_wrong(found):
    others = found["shard_map, the other sum"]
    assert len(others) == 8
    assert all(says.startswith("Verdict(ok=False") for says in others.values()), others


# --- collectives in a program's text ------------------------------------------------------------

ASYNCHRONOUS = """\
HloModule gathered

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %state = (s32[], bf16[2,8]{1,0:T(8,128)}) parameter(0)
  %part = bf16[2,8]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %begun = (bf16[2,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%part), dimensions={0}
  %whole = bf16[16,8]{1,0} all-gather-done(%begun)
  ROOT %both = (s32[], bf16[2,8]) tuple(%index, %part)
}

%still (state: (s32[], bf16[2,8])) -> pred[] {
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %pair = (f32[4]{0}, f32[4]{0}) all-reduce(%x, %x), to_apply=%add
  %loop = (s32[], bf16[2,8]) while(%start), condition=%still, body=%bodyTURNS
  ROOT %out = f32[4]{0} get-tuple-element(%pair), index=0
}
"""
KNOWN = ', backend_config={"known_trip_count":{"n":"3"}}'


def test_a_collective_that_begins_and_ends_is_one_and_a_loop_counts_its_turns():
    found = collectives(ASYNCHRONOUS.replace("TURNS", KNOWN))
    assert found == {"all-reduce": Traffic(1, 32), "all-gather": Traffic(3, 3 * 16 * 8 * 2)}
    assert total(found) == Traffic(4, 32 + 768)
    assert total(found).kib == 0.8


def test_a_loop_of_unknown_length_with_collectives_raises():
    with pytest.raises(ValueError, match="all-gather in body: it is in a loop whose number of"):
        collectives(ASYNCHRONOUS.replace("TURNS", ""))


def test_another_text_than_a_compiled_program_raises():
    with pytest.raises(ValueError, match=r"give compiled.as_text\(\)"):
        collectives(jax.jit(jax.numpy.sin).lower(1.0).as_text())


@pytest.mark.parametrize("number", [2, 3])
def test_the_command_prints_both_and_fails_where_ours_has_more(monkeypatch, capsys, number):
    case, layout = comparison.fused(), comparison.MAPPED
    both = {"ours": lambda: Traffic(number, 2048), "theirs": lambda: Traffic(2, 1024)}
    each = SimpleNamespace(case=case, layout=layout, **both)
    monkeypatch.setattr(comparison, "virtual_devices", lambda: None)
    monkeypatch.setattr(comparison, "comparisons", lambda: [each])
    assert scale.main(["collectives"]) == (number == 3)
    row = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-2].split("│")[1:-1]]
    assert row == ["GPT, fused head", "data, shard_map", f"{number}", "2.0", "2", "1.0"]


# --- placements ---------------------------------------------------------------------------------


def test_what_cannot_be_divided_evenly_is_whole():
    mesh = jax.sharding.AbstractMesh((3, 2), ("data", "model"))
    shapes = {"a": jax.ShapeDtypeStruct((4, 6, 9), float), "b": jax.ShapeDtypeStruct((5,), float)}
    places = fully_sharded(shapes, mesh)
    assert (places["a"].spec, places["b"].spec) == (P(None, None, "data"), P())
    assert {place.spec for place in replicated(shapes, mesh).values()} == {P()}


def test_a_mesh_without_data_has_the_whole_batch_everywhere():
    assert batch(auto_mesh(model=1)).spec == P()
    assert tensor_parallel((), auto_mesh(model=1)) == ()
