"""What manual_bp costs beside jax.grad: time to compile, time to run, memory.

    python -m benchmarks stack              a table of ratios beside their targets
    python -m benchmarks stack --json FILE  the same as JSON too
    python -m benchmarks linear_cross_entropy   a head fused with its loss, likewise
    make bench                              the same in a virtual environment of its own

Each row is a ratio of two measurements. Times are measured in turn, one then the other, several
rounds, and the medians are divided; they depend on the machine, so nothing fails on them. Memory is
what XLA says that the compiled program needs beside its arguments and results
(`memory_analysis().temp_size_in_bytes`): the same on every run.

A benchmark is a module here with a function `measure(...) -> list[Row]`.
"""
