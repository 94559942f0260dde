"""Keys and values of the scales done, preallocated, shared between states until one of them must write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tts_vision.types import Rows


@dataclass(eq=False)
class KVCache:
    """Keys and values of some particles, for all layers and branches of guidance.

    Nothing that was written is written again: several states may hold rows of one cache at different lengths,
    and `rows_of` copies only if another state has gone on from the same place.

    Attributes:
        keys: By layer, ``(branches, rows, heads, tokens, head_dim)``, with room for all scales but the last.
        values: As `keys`.
        filled: Tokens that are written.
    """

    keys: list[Tensor]
    values: list[Tensor]
    filled: int = 0

    @classmethod
    def empty(
        cls,
        layers: int,
        branches: int,
        rows: int,
        heads: int,
        tokens: int,
        head_dim: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        """A cache without tokens."""
        shape = (branches, rows, heads, tokens, head_dim)
        make = [torch.empty(shape, device=device, dtype=dtype) for _ in range(2 * layers)]
        return cls(make[:layers], make[layers:])

    @property
    def rows(self) -> int:
        """Particles that have a row."""
        return self.keys[0].shape[1]

    @property
    def bytes_per_row(self) -> int:
        """Memory of one particle, both branches of guidance included."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values)) // self.rows

    def layer(self, number: int) -> tuple[Tensor, Tensor, int]:
        """Keys and values of a layer, ``(branches * rows, heads, tokens, head_dim)``, and `filled`."""
        return self.keys[number].flatten(0, 1), self.values[number].flatten(0, 1), self.filled

    def grow(self, tokens: int) -> None:
        """Counts tokens that every layer wrote; the last scale's find no room and are not counted."""
        self.filled = min(self.filled + tokens, self.keys[0].shape[3])

    def copied(self, rows: Sequence[int], length: int) -> KVCache:
        """A cache of its own with the first `length` tokens of some rows."""
        index = torch.tensor(list(rows), device=self.keys[0].device)

        def copy(old: Tensor) -> Tensor:
            fresh = old.new_empty((old.shape[0], len(rows), *old.shape[2:]))
            fresh[:, :, :, :length] = old[:, :, :, :length].index_select(1, index)
            return fresh

        return KVCache([copy(k) for k in self.keys], [copy(v) for v in self.values], length)


@dataclass(frozen=True)
class CacheRow:
    """One particle's place in a cache.

    Attributes:
        cache: The cache.
        row: Its row there.
        length: Tokens of it that belong to the particle.
    """

    cache: KVCache = field(repr=False)
    row: int
    length: int


def rows_of(cache: KVCache) -> Rows:
    """The places of all rows of a cache at its present length."""
    return Rows(CacheRow(cache, row, cache.filled) for row in range(cache.rows))


def gather(places: Sequence[CacheRow]) -> KVCache:
    """A cache whose rows are those places, ready to be written to.

    It is the very cache they lie in if they are all its rows, in order, and nothing was written behind them;
    otherwise a copy.
    """
    first = places[0]
    same = all(place.cache is first.cache for place in places)
    if (
        same
        and [p.row for p in places] == list(range(first.cache.rows))
        and first.cache.filled == first.length
    ):
        return first.cache
    if same:
        return first.cache.copied([place.row for place in places], first.length)
    parts = [p.cache.copied([p.row], p.length) for p in places]
    return KVCache(
        [torch.cat(layers, 1) for layers in zip(*(p.keys for p in parts))],
        [torch.cat(layers, 1) for layers in zip(*(p.values for p in parts))],
        first.length,
    )
