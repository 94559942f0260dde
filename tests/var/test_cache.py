"""Keys and values: pieces that never change, shared by forks, freed with the last that holds them."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from tiny_var import INFINITY, SCHEDULE, cache_for, infinity, noise
from torch import Tensor

from tts_vision.algorithms.best_of_n import best_of_n
from tts_vision.algorithms.tts_var import tts_var
from tts_vision.eval.var_costs import FEATURES, run
from tts_vision.pipelines.var.cache import CacheRow, CacheShape, KVCache, rows_of

SHAPE = CacheShape(layers=2, branches=2, heads=2, room=8, head_dim=4)


def extend(cache: KVCache, tokens: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """One scale with random keys and values; all keys and values by layer."""
    found = []
    for layer in range(cache.shape.layers):
        shape = (cache.shape.branches * len(cache.rows), cache.shape.heads, tokens, cache.shape.head_dim)
        new = noise(2, *shape, seed=10 * seed + layer)
        found.append(cache.extended(layer, new[0], new[1]))
    cache.grow(tokens)
    return found


def test_memory_of_a_candidate_of_infinity_2b():
    layers, branches, heads, head_dim = 32, 2, 16, 128
    tokens = 10521 - 64 * 64  # all scales but the last
    shape = CacheShape(layers, branches, heads, tokens, head_dim, dtype=torch.bfloat16)
    assert shape.bytes_per_row == 2 * 2 * layers * branches * heads * tokens * head_dim
    assert round(shape.bytes_per_row / 1e9, 2) == 3.37
    assert round(shape.bytes_per_row * 10521 / tokens / 1e9, 1) == 5.5  # with the last scale stored


def test_new_tokens_come_behind_the_old_ones():
    cache = KVCache.empty(SHAPE, 3)
    first = extend(cache, 2, seed=1)
    second = extend(cache, 3, seed=2)
    assert cache.filled == 5
    for (k1, v1), (k2, v2) in zip(first, second):
        assert k2.shape == v2.shape == (6, 2, 5, 4)
        assert torch.equal(k2[:, :, :2], k1) and torch.equal(v2[:, :, :2], v1)


def test_the_last_scale_is_not_kept():
    cache = KVCache.empty(SHAPE, 2)
    extend(cache, 5)
    extend(cache, 3)
    assert cache.filled == 8
    found = extend(cache, 100)
    assert found[0][0].shape[2] == 108 and cache.filled == 8
    assert [piece.tokens for piece in cache.rows[0].pieces] == [5, 3]


@pytest.mark.parametrize("index", [[0, 1], [2, 1, 0], [0, 0, 1, 2], [1]])
def test_forks_hold_the_pieces_of_their_parents(index: list[int]):
    cache = KVCache.empty(SHAPE, 3)
    extend(cache, 5)
    fork = KVCache(rows_of(cache).select(index))
    assert all(mine.pieces[0] is cache.rows[i].pieces[0] for mine, i in zip(fork.rows, index))
    before = [k.clone() for k in fork.rows[0].pieces[0].keys]
    extend(fork, 2, seed=3)
    assert cache.filled == 5 and fork.filled == 7
    assert all(map(torch.equal, before, cache.rows[index[0]].pieces[0].keys))


def test_a_row_does_not_keep_the_others_of_its_batch_alive():
    cache = KVCache.empty(SHAPE, 4)
    extend(cache, 5)
    row = cache.rows[2]
    other = weakref.ref(cache.rows[1].pieces[0].keys[0])
    del cache
    gc.collect()
    assert other() is None
    stored = row.pieces[0].keys[0]
    assert stored.untyped_storage().nbytes() == stored.numel() * stored.element_size()


def test_first_scales():
    cache = KVCache.empty(SHAPE, 1)
    for tokens in (1, 2, 3):
        extend(cache, tokens, seed=tokens)
    row = cache.rows[0]
    assert [row.first(n).tokens for n in (0, 1, 2, 3, 6, 99)] == [0, 1, 1, 3, 6, 6]
    assert isinstance(row.first(3), CacheRow) and row.first(3).pieces[0] is row.pieces[0]


def test_a_model_only_appends():
    model = infinity()
    condition = model.condition(noise(1, 5, 24)).rows(2)
    cache, seen = cache_for(INFINITY, SCHEDULE, 2), []
    for k in range(len(SCHEDULE)):
        given = noise(2, SCHEDULE.lengths[k], 8, seed=k) if k else None
        before = cache.rows[1].pieces
        model.scale(condition, given, k, SCHEDULE, cache)
        assert cache.rows[1].pieces[: len(before)] == before
        seen.append(cache.filled)
    assert seen == [*SCHEDULE.starts[1:-1], SCHEDULE.starts[-2]]  # the last scale is not stored


def test_a_fork_goes_on_as_its_parent_would():
    model = infinity()
    condition = model.condition(noise(1, 5, 24))
    cache = cache_for(INFINITY, SCHEDULE, 2)
    given = [noise(2, length, 8, seed=k) if k else None for k, length in enumerate(SCHEDULE.lengths)]
    for k in range(2):
        model.scale(condition.rows(2), given[k], k, SCHEDULE, cache)
    places = rows_of(cache)
    after = model.scale(condition.rows(2), given[2], 2, SCHEDULE, KVCache(places))
    fork = KVCache(places.select([1, 1, 0]))
    again = model.scale(condition.rows(3), given[2][[1, 1, 0]], 2, SCHEDULE, fork)
    assert torch.allclose(again, after[[1, 1, 0]], atol=1e-5)


def peak_of(search: Any) -> float:
    """Peak of the keys and values of a whole search on Infinity-2B at one megapixel, in GB."""
    return run("", search).peak / 1e9


def test_peak_of_tts_var_on_infinity_2b() -> None:
    """One finished candidate takes 3.37 GB, and one layer of it is put together at a time."""
    peak = peak_of(lambda ctx: tts_var(ctx, n=8, features=FEATURES, lam=10.0))
    assert 3.37 < peak <= 3.6


def test_peak_of_best_of_n_grows_with_the_candidates() -> None:
    one, two = (peak_of(lambda ctx, n=n: best_of_n(ctx, n=n)) for n in (1, 2))
    assert 3.37 < one <= 3.6
    assert one * 1.9 < two <= 2 * 3.6
