"""The ratios as bars against 1."""

from __future__ import annotations

import pathlib

from benchmarks.measuring import Result
from benchmarks.report import Findings
from benchmarks.row import MEMORY, SAME, TIME, TORCH

COLOURS = {TIME: "#1f6f8b", MEMORY: "#e0a458"}


TICKS = (0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5)


def draw(findings: list[Findings], file: pathlib.Path) -> None:
    """Draw time and memory by hand over jax.grad's, with targets, and time over PyTorch's.

    Args:
        findings: of the groups.
        file: a picture of any kind that matplotlib writes; SVG from its ending.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import lines, patches, pyplot, ticker

    every = [(each.group.name, result) for each in findings for result in each.results]
    results = [(group, each) for group, each in every if _shown(each)]
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.34 * len(results)), layout="constrained")
    for place, (_, result) in enumerate(results):
        for quantity, shift in ((TIME, -0.19), (MEMORY, 0.19)):
            ratio = result.ratio(quantity, SAME)
            if ratio:
                # a bar on a logarithmic axis begins at 1, where both take the same
                axes.barh(place + shift, ratio - 1, 0.36, left=1, color=COLOURS[quantity])
            targets = [
                each.limit
                for each in result.row.targets
                if each.quantity == quantity and each.against == SAME
            ]
            for limit in targets:
                axes.plot([limit] * 2, [place + shift - 0.18, place + shift + 0.18], color="black")
        of_torch = result.ratio(TIME, TORCH)
        if of_torch:
            axes.plot(of_torch, place - 0.19, "o", markersize=4, color="#b23a48")
    axes.set_yticks(range(len(results)), [f"{group}: {each.row.name}" for group, each in results])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_xlabel("by hand over jax.grad of the same forward pass")
    axes.grid(axis="x", alpha=0.2)
    handles = [
        patches.Rectangle((0, 0), 1, 1, color=COLOURS[TIME], label="time"),
        patches.Rectangle((0, 0), 1, 1, color=COLOURS[MEMORY], label="temporary memory"),
        lines.Line2D([], [], color="black", label="target", marker="|", linestyle=""),
        lines.Line2D([], [], color="#b23a48", marker="o", linestyle="", label="time over PyTorch"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def _shown(result: Result) -> bool:
    """Whether there is a bar to draw."""
    return any(result.ratio(quantity, SAME) for quantity in (TIME, MEMORY))
