"""Run every notebook from its .py file; fail where a cell fails, or a notebook takes over a minute.

    python notebooks/run.py [--keep] [NAME ...]

With --keep the outputs are written into the .ipynb files that are committed. Without it nothing is
written, but the code in each .ipynb must be that of its .py.
"""

import argparse
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

LIMIT_SECONDS = 60
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def main() -> int:
    """Run the notebooks named, or all; the exit status is 0 only if all ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write outputs into the .ipynb")
    parser.add_argument("names", nargs="*", help="beginnings of names, all without")
    options = parser.parse_args()
    home = Path(__file__).parent
    failed = 0
    for source in sorted(home.glob("[0-9]*.py")):
        if options.names and not source.name.startswith(tuple(options.names)):
            continue
        failed += not run(source, options.keep)
    return 1 if failed else 0


def run(source: Path, keep: bool) -> bool:
    """Run one notebook; whether it ran, in time, and its pair holds the same code."""
    notebook = jupytext.read(source)
    target = source.with_suffix(".ipynb")
    started = time.perf_counter()
    try:
        NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(source.parent))
    except Exception as error:
        print(f"{source.name}: {error}")
        return False
    seconds = time.perf_counter() - started
    print(f"{source.name}: {seconds:.1f} s")
    if keep:
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"
            cell.metadata.pop("execution", None)
        notebook.metadata = nbformat.from_dict(
            {**METADATA, "jupytext": {"formats": "ipynb,py:percent"}}
        )
        nbformat.write(notebook, target)
    committed = nbformat.read(target, as_version=4)
    if [cell.source for cell in committed.cells] != [cell.source for cell in notebook.cells]:
        print(f"{target.name} doesn't hold the code of {source.name}: make notebooks ARGS=--keep")
        return False
    if any(cell.cell_type == "code" and cell.execution_count is None for cell in committed.cells):
        print(f"{target.name} was committed without outputs: make notebooks ARGS=--keep")
        return False
    if seconds > LIMIT_SECONDS:
        print(f"{source.name} took {seconds:.0f} s, more than {LIMIT_SECONDS}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
