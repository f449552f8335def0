"""The rows on eight devices, in processes of their own: virtual devices are set before JAX starts.

    python -m verify.interop.worker                                      one process, eight devices
    python -m verify.interop.worker --port 4711 --process 1              one of two, with four each

Each judgement is a line of JSON; the first of two processes prints them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import jax

from verify.interop import devices
from verify.interop.rows import every_row

ON_TWO_PROCESSES = {"two processes": "Auto mesh", "two processes, shard_map": "shard_map"}
"""Their names in the matrix, and the contexts that they are."""


def judgements(contexts: dict[str, str], families: list[str]) -> Iterator[dict[str, Any]]:
    """What is found of each row in each context, one after the other.

    Args:
        contexts: names in the matrix, and names in `devices.DEVICES`.
        families: of the rows; all if there are none.
    """
    for row in every_row():
        if families and row.family not in families:
            continue
        for name, context in contexts.items():
            found: dict[str, Any] = {"family": row.family, "context": name}
            if why := devices.why_not(context, row):
                yield found | {"omitted": why}
                continue
            try:
                verdict = devices.judge(row, context)
                failure = f"{row}: {verdict.first_wrong} {verdict.why}"
                yield found | {
                    "ok": verdict.ok,
                    "figure": float(verdict.figure),
                    "failure": failure,
                }
            except Exception as error:  # one row that can't be run doesn't end the others
                failure = f"{row}: {type(error).__name__}: {error}"
                yield found | {"ok": False, "figure": 0.0, "failure": failure}


def main(arguments: list[str] | None = None) -> None:
    """Judge and print."""
    parser = argparse.ArgumentParser(prog="python -m verify.interop.worker", description=__doc__)
    parser.add_argument("--port", type=int, help="of the first process; then there are two")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--family", action="append", default=[])
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    two = options.port is not None
    jax.config.update("jax_num_cpu_devices", 4 if two else 8)
    if two:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{options.port}", 2, options.process)
    if len(jax.devices()) != 8:
        raise RuntimeError(f"expected 8 devices, JAX has {len(jax.devices())}")
    contexts = ON_TWO_PROCESSES if two else {name: name for name in devices.DEVICES}
    for each in judgements(contexts, options.family):
        if options.process == 0:
            print(json.dumps(each), flush=True)


if __name__ == "__main__":
    main()
