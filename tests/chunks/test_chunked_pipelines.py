"""Autoregressive video pipelines of diffusers, driven chunk by chunk, against their own calls."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_chunks import CALLS, counted, finished, frames_of, model_of, sampler_of

from tts_vision.condition import Condition
from tts_vision.ledger import Ledger
from tts_vision.pipelines.chunk_sampler import ChunkSampler
from tts_vision.testing.contracts import close

CONDITION = Condition("two red circles")
SEED = 5
ALL = pytest.mark.parametrize("name", CALLS)


@cache
def shared(name: str) -> ChunkSampler:
    """A sampler for tests that leave it as it is, which `test_a_pipeline_is_left_as_it_was` promises."""
    return sampler_of(name)


@ALL
def test_chunks_make_the_clip_of_the_call_and_cost_its_forwards(name: str) -> None:
    sampler, ledger = shared(name), Ledger()
    sampler.bind(ledger)
    with counted(sampler) as native:
        plain = sampler.plain(CONDITION, [0], seed=SEED)
    state = sampler.init(CONDITION, [0], seed=SEED)
    for step in range(sampler.num_steps):
        with counted(sampler) as rows:
            state = sampler.advance(state)
        assert sum(rows) == sampler.cost(CONDITION, step, 1).nfe  # none for the chunks before
    assert sampler.num_steps >= 2
    assert ledger.spent.nfe == sampler.cost(CONDITION, 0, sampler.num_steps).nfe == sum(native)
    with counted(sampler) as rows:
        clip = sampler.decode(state)
    assert not rows
    assert torch.equal(frames_of(clip[0]), frames_of(plain[0]))
    assert len(frames_of(clip[0])) == model_of(sampler).pixel_frames(sampler.num_steps)
    assert sampler.facts(CONDITION)["plain"]


@ALL
def test_rows_together_are_rows_alone_and_forks_differ_from_the_fork_on(name: str) -> None:
    sampler = shared(name)
    first = sampler.advance(sampler.init(CONDITION, [0, 3], seed=SEED))
    alone = sampler.advance(sampler.init(CONDITION, [3], seed=SEED))
    assert close(first.latents[1:], alone.latents, 1e-5)
    forks = sampler.advance(first.select([0, 0, 1], uids=(0, 7, 3)))
    kept = first.latents.shape[2]
    assert torch.equal(forks.latents[0, :, :kept], forks.latents[1, :, :kept])
    assert not close(forks.latents[0, :, kept:], forks.latents[1, :, kept:], 1e-2)
    straight = sampler.advance(sampler.advance(sampler.init(CONDITION, [0], seed=SEED)))
    assert close(forks.latents[:1], straight.latents, 1e-5)


@ALL
def test_each_chunk_is_made_for_its_own_prompt(name: str) -> None:
    sampler = shared(name)
    state = sampler.advance(sampler.init(CONDITION, [0], seed=SEED))
    other = replace(state, conditions=(Condition("a blue star"),))
    changed, same = sampler.advance(sampler.recondition(other)), sampler.advance(state)
    kept = state.latents.shape[2]
    assert torch.equal(changed.latents[:, :, :kept], same.latents[:, :, :kept])
    assert not torch.equal(changed.latents, same.latents)


@ALL
def test_previews_have_the_frames_that_they_promise(name: str) -> None:
    sampler = shared(name)
    state = sampler.advance(sampler.init(CONDITION, [0], seed=SEED))
    with counted(sampler) as rows:
        preview = frames_of(sampler.preview(state)[0])
    assert not rows
    assert len(preview) == model_of(sampler).pixel_frames(1)
    whole = frames_of(sampler.decode(finished(sampler, state))[0])
    exact = torch.equal(preview, whole[: len(preview)])
    assert exact == (not model_of(sampler).approximates)
    assert sampler.facts(CONDITION)["previews"].startswith("exact") == exact


@ALL
def test_few_frames_of_a_preview_are_those_of_all(name: str) -> None:
    few, sampler = sampler_of(name, preview_frames=2), shared(name)
    state = sampler.advance(sampler.init(CONDITION, [0], seed=SEED))
    whole, chosen = frames_of(sampler.preview(state)[0]), frames_of(few.preview(state)[0])
    wanted = [len(whole) // 2 - 1, -1] if len(whole) > 2 else range(len(whole))
    assert torch.equal(chosen, whole[list(wanted)])


@ALL
def test_a_pipeline_is_left_as_it_was(name: str) -> None:
    sampler = sampler_of(name)
    pipe = model_of(sampler).pipe
    parts = (pipe, pipe.vae, pipe.transformer)
    before = [{**vars(part)} for part in parts]
    config, weather = dict(pipe.transformer.config), torch.get_rng_state()
    finished(sampler, sampler.init(CONDITION, [0], seed=SEED))
    sampler.plain(CONDITION, [0], seed=SEED)
    for part, attributes in zip(parts, before):
        assert all(vars(part)[key] is value for key, value in attributes.items() if callable(value))
        assert "prepare_latents" not in vars(part) and "decode" not in vars(part)
    assert dict(pipe.transformer.config) == config
    assert torch.equal(torch.get_rng_state(), weather)
    assert isinstance(pipe.scheduler, type(CALLS[name][0]().scheduler))
