"""Keys and values: append-only, shared between states, copied only where two would write to one place."""

from __future__ import annotations

import pytest
import torch
from tiny_var import INFINITY, SCHEDULE, cache_for, infinity, noise

from tts_vision.pipelines.var.cache import CacheRow, KVCache, gather, rows_of
from tts_vision.types import Rows


def filled(rows: int = 3, tokens: int = 5, room: int = 8, branches: int = 2) -> KVCache:
    """A cache whose first tokens hold random numbers."""
    cache = KVCache.empty(2, branches, rows, 2, room, 4)
    for i, tensor in enumerate((*cache.keys, *cache.values)):
        tensor[:, :, :, :tokens] = noise(branches, rows, 2, tokens, 4, seed=i)
    cache.grow(tokens)
    return cache


def written(cache: KVCache, tokens: int | None = None) -> torch.Tensor:
    stop = cache.filled if tokens is None else tokens
    return torch.stack([t[:, :, :, :stop] for t in (*cache.keys, *cache.values)])


def test_memory_of_a_row():
    cache = KVCache.empty(2, 2, 3, 4, 10, 8, dtype=torch.bfloat16)
    assert cache.rows == 3
    assert cache.bytes_per_row == 2 * (2 * 2 * 4 * 10 * 8) * 2
    assert cache.keys[0].dtype == torch.bfloat16


def test_memory_of_a_candidate_of_infinity_2b():
    layers, branches, heads, head_dim = 32, 2, 16, 128
    tokens = 10521 - 64 * 64  # all scales but the last
    with torch.device("meta"):
        cache = KVCache.empty(
            layers, branches, 1, heads, tokens, head_dim, device="meta", dtype=torch.bfloat16
        )
    assert cache.bytes_per_row == 2 * 2 * layers * branches * heads * tokens * head_dim
    assert round(cache.bytes_per_row / 1e9, 2) == 3.37
    assert round(cache.bytes_per_row * 10521 / tokens / 1e9, 1) == 5.5  # with the last scale stored


def test_layers_are_views_of_all_branches():
    cache = filled()
    keys, values, length = cache.layer(1)
    assert keys.shape == values.shape == (6, 2, 8, 4) and length == 5
    keys[4, 0, 6] = 7.0  # branch 1, row 1
    assert bool((cache.keys[1][1, 1, 0, 6] == 7).all())


def test_the_last_scale_finds_no_room():
    cache = filled(tokens=5, room=8)
    cache.grow(3)
    assert cache.filled == 8
    cache.grow(100)
    assert cache.filled == 8


def test_all_rows_in_order_are_the_cache_itself():
    cache = filled()
    assert gather(rows_of(cache)) is cache
    assert gather([CacheRow(cache, row, 5) for row in range(3)]) is cache


@pytest.mark.parametrize("index", [[0, 1], [2, 1, 0], [0, 0, 1, 2], [1]])
def test_other_rows_are_copied(index):
    cache = filled()
    kept = written(cache).clone()
    got = gather(rows_of(cache).select(index))
    assert got is not cache and got.rows == len(index) and got.filled == 5
    assert torch.equal(written(got), kept[:, :, index])
    for tensor in (*got.keys, *got.values):
        tensor.fill_(9.0)
    assert torch.equal(written(cache), kept)


def test_a_cache_that_went_on_is_copied_for_the_others():
    cache = filled()
    places = rows_of(cache)
    assert gather(places) is cache  # the first to go on writes behind what is there
    cache.keys[0][:, :, :, 5:7] = 1.0
    cache.grow(2)
    other = gather(places)  # whoever stands at the old length gets its own
    assert other is not cache and other.filled == 5
    assert torch.equal(written(other), written(cache, 5))
    other.keys[0][:, :, :, 5:7] = 2.0
    assert bool((cache.keys[0][:, :, :, 5:7] == 1).all())


def test_rows_of_several_caches_are_joined():
    first, second = filled(3), filled(2)
    got = gather(Rows((*rows_of(first).select([2]), *rows_of(second).select([1, 0]))))
    assert got.rows == 3 and got.filled == 5
    assert torch.equal(written(got)[:, :, :1], written(first)[:, :, 2:])
    assert torch.equal(written(got)[:, :, 1:], written(second)[:, :, [1, 0]])


def test_a_model_only_appends():
    model = infinity()
    condition = model.condition(noise(1, 5, 24)).rows(2)
    cache, seen = cache_for(INFINITY, SCHEDULE, 2), []
    for k in range(len(SCHEDULE)):
        given = noise(2, SCHEDULE.lengths[k], 8, seed=k) if k else None
        before = written(cache).clone()
        model.scale(condition, given, k, SCHEDULE, cache)
        assert torch.equal(written(cache, before.shape[4]), before)
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
    after = model.scale(condition.rows(2), given[2], 2, SCHEDULE, gather(places))
    fork = gather(places.select([1, 1, 0]))
    again = model.scale(condition.rows(3), given[2][[1, 1, 0]], 2, SCHEDULE, fork)
    assert torch.allclose(again, after[[1, 1, 0]], atol=1e-5)
