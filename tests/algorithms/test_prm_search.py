from __future__ import annotations

from toy_search import events, run, toy_context
from tts_vision.algorithms.beam_search import beam_search
from tts_vision.algorithms.prm_search import prm_search
from tts_vision.testing.toys import GaussianMixtureSampler


def test_the_best_of_n_previews_is_kept_at_each_step_and_branches() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5))
    prm_search(ctx, n=4)
    previews = [event for event in events(ctx, "score") if event.preview]
    assert [event.step for event in previews] == [1, 2, 3, 4]
    assert all(len(event.uids) == 4 for event in previews)
    kept = [event.parents for event in events(ctx, "select")]
    for event, uids in zip(previews, kept):
        assert uids == (event.uids[max(range(4), key=lambda i: event.values[i])],)


def test_it_is_beam_search_with_one_beam() -> None:
    contexts = []
    for algorithm, params in (
        (prm_search, {"n": 3}),
        (beam_search, {"width": 1, "branch": 3, "scales": [0, 1, 2, 3]}),
    ):
        ctx = toy_context(GaussianMixtureSampler(num_steps=5))
        algorithm(ctx, **params)  # type: ignore[operator]
        contexts.append([event.model_dump(exclude={"spent"}) for event in ctx.events])
    assert contexts[0] == contexts[1]


def test_it_is_sized_by_the_budget() -> None:
    ctx = toy_context(GaussianMixtureSampler(num_steps=5), times=12)
    run(prm_search, ctx)
    assert ctx.best is not None and ctx.ledger.spent.nfe <= 60
