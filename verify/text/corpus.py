"""Real English text that comes with Python: the help on its language, `pydoc_data.topics`.

Some 465,000 to 511,000 characters, by Python's version: its length and hash are printed.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any

import numpy as np

HELD_OUT = 0.1
"""The share of the text at its end that is for validation."""


@dataclass(frozen=True)
class Corpus:
    """A text as tokens: each character is the index of itself in the vocabulary."""

    text: str

    @functools.cached_property
    def vocabulary(self) -> str:
        """All characters of the text, sorted."""
        return "".join(sorted(set(self.text)))

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """The text, (characters,) integers."""
        return self.encode(self.text)

    @property
    def training(self) -> np.ndarray:
        """The tokens to learn from: all but the last tenth."""
        return self.tokens[: round(len(self.tokens) * (1 - HELD_OUT))]

    @property
    def validation(self) -> np.ndarray:
        """The last tenth."""
        return self.tokens[len(self.training) :]

    @property
    def sha256(self) -> str:
        """The text's hash."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Characters as tokens."""
        index = {character: number for number, character in enumerate(self.vocabulary)}
        return np.array([index[character] for character in text], np.int32)

    def decode(self, tokens: Any) -> str:
        """Tokens as characters."""
        return "".join(self.vocabulary[token] for token in np.asarray(tokens))

    def __str__(self) -> str:
        return (
            f"{len(self.text):,} characters of pydoc_data.topics, {len(self.vocabulary)} of them "
            f"different, sha256 {self.sha256}"
        )


@functools.cache
def corpus() -> Corpus:
    """Python's help topics, in the order of their names.

    Example:
        >>> text = corpus()
        >>> text.decode(text.encode("assert"))
        'assert'
    """
    return Corpus("".join(topics[name] for name in sorted(topics)))
