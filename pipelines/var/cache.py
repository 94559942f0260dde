"""Keys and values of the scales done: pieces that never change, shared by all that descend from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tts_vision.types import Rows


@dataclass(frozen=True)
class CacheShape:
    """The sizes of a cache.

    Attributes:
        layers: Blocks of the transformer.
        branches: Passes of each row: 2 with classifier-free guidance, else 1.
        heads: Attention heads.
        room: Tokens that are kept; those of the last scale, which nothing reads, are not.
        head_dim: Channels of a head.
        device: Where it is.
        dtype: Its precision.
    """

    layers: int
    branches: int
    heads: int
    room: int
    head_dim: int
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def bytes_per_row(self) -> int:
        """Memory of one particle when all that is kept is there, both branches of guidance included."""
        return 2 * self.layers * self.branches * self.heads * self.room * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Piece:
    """The keys and values of one scale of one particle.

    Attributes:
        keys: By layer, ``(branches, heads, tokens, head_dim)``.
        values: As `keys`.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the scale."""
        return self.keys[0].shape[2]


@dataclass(frozen=True)
class CacheRow:
    """One particle's keys and values: a piece for each scale, shared with all that descend from the same one.

    Attributes:
        shape: The sizes of the cache.
        pieces: By scale.
    """

    shape: CacheShape
    pieces: tuple[Piece, ...] = field(default=(), repr=False)

    @property
    def tokens(self) -> int:
        """Tokens that are there."""
        return sum(piece.tokens for piece in self.pieces)

    def first(self, tokens: int) -> CacheRow:
        """Its first scales, of so many tokens in all."""
        kept, total = [], 0
        for piece in self.pieces:
            if total + piece.tokens > tokens:
                break
            kept.append(piece)
            total += piece.tokens
        return CacheRow(self.shape, tuple(kept))


class KVCache:
    """The keys and values of some particles while a scale of theirs is computed.

    Args:
        rows: The particles' rows, all of one shape and of as many tokens.
    """

    def __init__(self, rows: Sequence[CacheRow]) -> None:
        self.rows = list(rows)
        self.shape = self.rows[0].shape
        self._new: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.rows]

    @classmethod
    def empty(cls, shape: CacheShape, rows: int) -> KVCache:
        """A cache without tokens."""
        return cls([CacheRow(shape)] * rows)

    @property
    def filled(self) -> int:
        """Tokens that are there."""
        return self.rows[0].tokens

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, those of a new scale behind the others.

        Layers come in order. What is returned belongs to the caller; the cache keeps a copy of the new ones.

        Args:
            layer: Which layer.
            keys: Of the new scale, ``(branches * rows, heads, tokens, head_dim)``.
            values: As `keys`.
        """
        keys, values = keys.to(self.shape.dtype), values.to(self.shape.dtype)
        if self._keeps(keys.shape[2]):
            for number, new in enumerate(self._new):
                new.append((self._of_row(keys, number), self._of_row(values, number)))
        return (
            self._joined([[piece.keys[layer] for piece in row.pieces] for row in self.rows], keys),
            self._joined([[piece.values[layer] for piece in row.pieces] for row in self.rows], values),
        )

    def grow(self, tokens: int) -> None:
        """Ends a scale, after all layers; its keys and values become pieces, unless it is the last one."""
        if self._keeps(tokens):
            pieces = [Piece(*map(tuple, zip(*new))) for new in self._new]
            self.rows = [CacheRow(self.shape, (*r.pieces, p)) for r, p in zip(self.rows, pieces, strict=True)]
        self._new = [[] for _ in self.rows]

    def _keeps(self, tokens: int) -> bool:
        return self.filled + tokens <= self.shape.room

    def _of_row(self, new: Tensor, row: int) -> Tensor:
        """A copy that keeps nothing else alive."""
        return new.unflatten(0, (self.shape.branches, len(self.rows)))[:, row].clone()

    def _joined(self, parts: list[list[Tensor]], new: Tensor) -> Tensor:
        """The parts of each row by scale, and the new tokens behind them, in the layout of `new`."""
        split = (self.shape.branches, len(parts))
        found = new.new_empty((*new.shape[:2], self.filled + new.shape[2], new.shape[3]))
        rows, at = found.unflatten(0, split), 0
        for scale in zip(*parts):
            stop = at + scale[0].shape[2]
            shared = all(part is scale[0] for part in scale)
            rows[:, :, :, at:stop] = scale[0][:, None] if shared else torch.stack(scale, 1)
            at = stop
        found[:, :, at:] = new
        return found


def rows_of(cache: KVCache) -> Rows:
    """The rows of a cache, for a state."""
    return Rows(cache.rows)
