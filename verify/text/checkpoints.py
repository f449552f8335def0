"""Checkpoints by orbax: a training that was killed goes on as if it had not been.

Orbax writes into a directory that it renames when all is there; so a kill leaves the checkpoint
before whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from verify.text.corpus import Corpus
from verify.text.training import Settings

KEPT = 2
"""The last so many checkpoints are kept."""


class Checkpoints:
    """Where a training saves how far it has come.

    Args:
        checkpointer: orbax's.
        settings, corpus: of the training; a checkpoint of another one is refused.
    """

    def __init__(self, checkpointer: Any, settings: Settings, corpus: Corpus) -> None:
        self.checkpointer = checkpointer
        self.made_for = {**dataclasses.asdict(settings), "sha256": corpus.sha256}

    def save(self, progress: Any) -> None:
        """Write how far it has come, unless this step has been written already.

        Args:
            progress: a NamedTuple of arrays and the number `step`. Where several processes train,
                each calls this, and they write their parts of one checkpoint.
        """
        if not any(each.step == progress.step for each in self.checkpointer.checkpoints):
            metadata = self.made_for
            self.checkpointer.save(progress.step, progress._asdict(), custom_metadata=metadata)

    def last(self, start: Any) -> Any:
        """The last one that was saved, `start` if there is none.

        Args:
            start: a training before its first step, or its shapes; arrays are put where its are.

        Raises:
            ValueError: when it is of a training with other settings or another text.
        """
        latest = self.checkpointer.latest
        if latest is None:
            return start
        made_for = self.checkpointer.metadata(latest.step).custom_metadata
        other = [
            f"{name} was {made_for.get(name)!r}, is {value!r}"
            for name, value in self.made_for.items()
            if made_for.get(name) != value
        ]
        if other:
            raise ValueError(
                f"The checkpoints in {self.checkpointer.directory} are of another training: "
                f"{'; '.join(other)}. Use another directory, or the same settings."
            )
        return type(start)(**self.checkpointer.load(latest.step, start._asdict()))


@contextmanager
def checkpoints(directory: str | Path, settings: Settings, corpus: Corpus) -> Iterator[Checkpoints]:
    """The checkpoints of a training in a directory, which is made if need be."""
    last: Any = ocp.training.preservation_policies.LatestN(KEPT)
    with ocp.training.Checkpointer(
        str(Path(directory).resolve()),
        preservation_policy=last,
        cleanup_tmp_directories=True,  # what a kill left half written
    ) as checkpointer:
        yield Checkpoints(checkpointer, settings, corpus)
