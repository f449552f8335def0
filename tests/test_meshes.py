"""Every rule on meshes of eight devices: what is printed by tests/on_meshes.py is a finding."""

import os
import subprocess
import sys
from pathlib import Path

from verify import rules

ROOT = Path(__file__).parents[1]


def test_every_rule_is_right_on_explicit_meshes_and_inside_shard_map():
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.on_meshes"],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"judged {len(rules.of_specs())} rules"]
