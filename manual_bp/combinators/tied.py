"""Tied: one set of parameters in several places of a body.

    out = body(params with p in every place of a group, x)

Backward: p is used in several places, so the gradients there add:

    dp = Σ over the group's places of dparams_body at that place

Derivation.  Let each place have parameters of its own, p₁ = p₂ = ... = p. Then
∂J/∂p = Σ_k ∂J/∂p_k · ∂p_k/∂p, and each ∂p_k/∂p is I. A walk passes through the body as if the
places were apart, and sees each use with the error that arrives there; only what it saw as
gradients is added, by `gather`, when the walk is over.

The parameters are kept at the first place of each group; the other places hold ().

Shapes  the parameters at all places of a group: the same
Source  Rumelhart, Hinton & Williams (1986), on equal weights; Press & Wolf (2017),
        arXiv:1608.05859 (a language model's two embeddings)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from manual_bp.layer import Combinator, Layer, Tree, Visit, within
from manual_bp.paths import Path, at, indices, is_path, replaced

WHOSE = "the body's"
"""Whose params the paths lead into."""


@dataclass(frozen=True)
class Tied(Combinator):
    """A body with parameters used in several places; write `tied(body, *groups)`."""

    body: Layer
    groups: tuple[tuple[Path, ...], ...]

    @property
    def children(self) -> tuple[Layer, ...]:
        return (self.body,)

    def rebuild(self, children: tuple[Layer, ...]) -> Tied:
        (body,) = children
        return Tied(body, self.groups)

    def init(self, key: jax.Array, x: Any) -> Tree:
        with within(1, self.body):
            params = self.body.init(key, x)
        _check_apart(
            [indices(params, path, self, WHOSE) for group in self.groups for path in group]
        )
        for first, *others in self.groups:
            for path in (first, *others):
                self._check_alike(params, first, path)
            for path in others:
                params = self._with(params, path, ())
        return (params,)

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Tree]:
        self.check(params, taken)
        for first, *others in self.groups:
            for path in others:
                if jax.tree.leaves(self._at(params[0], path)):
                    raise ValueError(
                        f"{self!r}: params at {path} must be (), since those at {first} are used "
                        "there. Make params with network.init(key, x)."
                    )
        filled = self._filled(params[0])
        with within(1, self.body):
            out, residuals = self.body.forward(filled, x, **self.hand(taken, 0))
        return out, (residuals,)

    def walk(
        self, visit: Visit, dout: jax.Array, params: Tree, residuals: Tree, *others: Tree
    ) -> tuple[Tree, jax.Array]:
        filled, *further = (self._filled(tree[0]) for tree in (params, *others))
        with within(1, self.body):
            seen, dx = self.body.walk(visit, dout, filled, residuals[0], *further)
        return (seen,), dx

    def gather(self, dparams: Tree) -> Tree:
        each = self.body.gather(dparams[0])
        for first, *others in self.groups:
            total = self._at(each, first)
            for path in others:
                total = jax.tree.map(lambda a, b: a + b, total, self._at(each, path))
                each = self._with(each, path, ())
            each = self._with(each, first, total)
        return (each,)

    def _filled(self, tree: Tree) -> Tree:
        """The tree with what is at the first place of a group where () is at its others."""
        for first, *others in self.groups:
            for path in others:
                if not jax.tree.leaves(self._at(tree, path)):
                    tree = self._with(tree, path, self._at(tree, first))
        return tree

    def _at(self, tree: Tree, path: Path) -> Tree:
        return at(tree, path, self, WHOSE)

    def _with(self, tree: Tree, path: Path, value: Tree) -> Tree:
        """The tree with this value at the path."""
        return replaced(tree, path, value, self, WHOSE)

    def _check_alike(self, params: Tree, first: Path, path: Path) -> None:
        here, there = self._at(params, first), self._at(params, path)
        shapes, structures = [], []
        for each in (here, there):
            leaves, structure = jax.tree.flatten(each)
            shapes.append([f"{leaf.dtype} {tuple(leaf.shape)}" for leaf in leaves])
            structures.append(structure)
        if not shapes[1]:
            raise ValueError(f"{self!r}: the layer at {path} has no parameters to tie.")
        if shapes[0] != shapes[1] or structures[0] != structures[1]:
            pairs = zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=False)
            turned = any(a.shape != b.shape and a.shape == b.shape[::-1] for a, b in pairs)
            advice = " tied does not transpose: W and Wᵀ cannot be tied." if turned else ""
            raise ValueError(
                f"{self!r}: the parameters at {first} are {', '.join(shapes[0])}, those at {path} "
                f"{', '.join(shapes[1])}; expected the same, since one set is used in both places."
                f"{advice}"
            )

    def __repr__(self) -> str:
        return f"tied({', '.join(map(repr, (self.body, *self.groups)))})"


def tied(body: Layer, *groups: tuple[Path, ...]) -> Tied:
    """A body with one set of parameters in all places of each group.

        dp = Σ over the group's places of dparams_body at that place

    It does not transpose: W in one place and Wᵀ in another cannot be tied.

    Args:
        body: any layer made of layers.
        *groups: at least one, each a tuple of at least two paths into the body's params; a path is
            a tuple of indices and names of fields. ((0,), (1,)) ties the first two layers of a
            sequential, ((0, "W"), (2, "W")) the weights of the first and the third.

    Returns:
        A layer whose params are (body's params,) with () at all places of a group but the first.

    Raises:
        TypeError: when the body isn't a layer, when there is no group, or one isn't a tuple of
            paths.
        ValueError: when a group has one place, or a place is named twice or lies inside another;
            at init, when there is nothing at a path, or the shapes in a group differ.

    Source: Press & Wolf (2017), arXiv:1608.05859.

    Example:
        >>> network = tied(sequential(Dense(3, tanh), Dense(3, tanh)), ((0,), (1,)))
        >>> ((first, second),) = network.init(jax.random.key(0), jnp.ones((2, 3)))
        >>> first.W.shape, second
        ((3, 3), ())
    """
    if not isinstance(body, Layer):
        raise TypeError(f"tied: body must be a layer, got {body!r}.")
    if not groups:
        raise TypeError(
            "tied: name at least one group of places that share parameters, as in "
            "tied(body, ((0,), (1,))), which ties the first two layers of a sequential."
        )
    for group in groups:
        _check_group(group)
    _check_apart([path for group in groups for path in group])
    return Tied(body, groups)


def _check_group(group: Any) -> None:
    if not isinstance(group, tuple) or not all(map(is_path, group)):
        raise TypeError(
            "tied: a group must be a tuple of paths, each a tuple of indices and names of fields, "
            f'as in ((0, "W"), (2, "W")); got {group!r}.'
        )
    if len(group) < 2:
        raise ValueError(
            f"tied: a group must have at least two places, got {group!r}. A path is a tuple "
            "itself: ((0,), (1,)) ties two layers."
        )


def _check_apart(paths: list[Path]) -> None:
    for number, path in enumerate(paths):
        for other in paths[:number]:
            shorter, longer = sorted((path, other), key=len)
            if longer[: len(shorter)] == shorter:
                how = "lies inside" if len(longer) > len(shorter) else "is"
                raise ValueError(
                    f"tied: {longer} {how} {shorter}, named before: name a place once, and put all "
                    "places that share parameters in one group."
                )
