from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Answer, asked, serving

from toy_search import events, run, toy_context
from tts_vision.algorithms.prompt_search import prompt_search
from tts_vision.condition import Condition
from tts_vision.errors import ConfigError
from tts_vision.rewriters.chat import lines
from tts_vision.rewriters.phrasings import TEMPLATES
from tts_vision.rewriting import load_rewriter
from tts_vision.sampler import Sampler
from tts_vision.testing.contracts import AlgorithmContract
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, position_of
from tts_vision.types import Media, Prompt, Score, State
from tts_vision.verifier import ALONE, Asked

REWRITES = ["near", "{prompt}, far", "elsewhere"]


class WordedSampler(GaussianMixtureSampler):
    """A toy whose samples are shifted by their text: "near" to the target, other texts away from it."""

    def decode(self, state: State) -> list[Media]:
        return self._images(state.latents + torch.stack([shift(c.text) for c in state.conditions]))

    def preview(self, state: State) -> list[Media]:
        return self.decode(state)


def shift(text: str) -> torch.Tensor:
    if text == "near":
        return torch.tensor([1.5, 1.0])
    angle = int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) / 10000
    return -2 * torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float32).abs()


class TestContract(AlgorithmContract):
    @pytest.fixture
    def kills(self) -> int:
        return 10

    @pytest.fixture
    def algorithm(self) -> Callable[..., State]:
        return prompt_search

    @pytest.fixture
    def params(self) -> dict[str, Any]:
        return {"rewrites": REWRITES}

    @pytest.fixture
    def sizes(self) -> dict[str, Any]:
        return {"n": 2, "rewrites": REWRITES}

    @pytest.fixture
    def make_sampler(self) -> Callable[[], Sampler]:
        return partial(WordedSampler, num_steps=4)


def test_the_better_half_goes_on_to_twice_as_many_noises() -> None:
    ctx = toy_context(WordedSampler(num_steps=4))
    run(prompt_search, ctx, n=2, rewrites=REWRITES)
    assert [len(event.uids) for event in events(ctx, "init")] == [2, 4, 8]
    assert [event.value["wordings"] for event in events(ctx, "note")] == [2, 1]
    assert len(ctx.candidates) == 4 * 2 + 2 * 4 + 1 * 8
    last = events(ctx, "recondition")[-1]
    assert len(last.uids) == 8 and last.conditions == (Condition("near").digest,) * 8


def test_wordings_share_their_initial_noise_and_the_users_own_competes() -> None:
    sampler = WordedSampler(num_steps=4, eta=0.0)
    ctx = toy_context(sampler)
    run(prompt_search, ctx, n=2, rewrites=REWRITES)
    places = {uid: position_of(c.load()) for uid, c in ctx.candidates.items()}
    first = events(ctx, "recondition")[:3]
    for event, text in zip(first, ["near", "x, far", "elsewhere"]):
        assert event.parents == (0, 1) and event.from_step == 0
        for uid, parent in zip(event.uids, event.parents):
            # without noise on the way the text alone makes the difference
            expected = places[parent] - shift("x").numpy() + shift(text).numpy()
            assert places[uid] == pytest.approx(expected, abs=1e-5)


def test_samples_are_judged_by_the_prompt_of_the_user() -> None:
    class Recording(TargetReward):
        def score(
            self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE
        ) -> list[Score]:
            seen.update(prompt.text for prompt in prompts)
            return super().score(media, prompts, asked)

    seen: set[str] = set()
    run(prompt_search, toy_context(WordedSampler(num_steps=4), Recording()), n=1, rewrites=REWRITES)
    assert seen == {"x"}


def test_finds_the_wording_that_the_seed_cannot_make_up_for() -> None:
    plain = toy_context(WordedSampler(num_steps=4), times=24)
    worded = toy_context(WordedSampler(num_steps=4), times=24)
    from tts_vision.algorithms.best_of_n import best_of_n

    run(best_of_n, plain)
    run(prompt_search, worded, rewrites=REWRITES)
    assert plain.best is not None and worded.best is not None
    assert worded.best.score.value > plain.best.score.value + 0.1
    assert plain.ledger.spent.nfe == worded.ledger.spent.nfe


class BlindToTheSecondCall(TargetReward):
    """Cannot score the samples of its second call."""

    asked_before = 0

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        self.asked_before += 1
        if self.asked_before == 2:
            return [Score.unscored("blind")] * len(media)
        return super().score(media, prompts, asked)


def test_a_wording_without_any_score_is_dropped_first() -> None:
    ctx = toy_context(WordedSampler(num_steps=4), BlindToTheSecondCall())
    run(prompt_search, ctx, n=1, rewrites=["near", "elsewhere", "{prompt}, far"])
    assert Condition("near").digest not in events(ctx, "recondition")[-1].conditions


def test_wordings_come_from_a_rule_by_default() -> None:
    ctx = toy_context(WordedSampler(num_steps=2))
    run(prompt_search, ctx, n=1, count=3)
    assert events(ctx, "rewrites")[0].value == [t.replace("{prompt}", "x") for t in TEMPLATES[:3]]
    assert ctx.ledger.calls == {"target_reward": len(ctx.candidates)}


def test_wordings_of_a_function_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def shout(text, n):\n    return [text.upper() + '!' * i for i in range(n)]\n")
    ctx = toy_context(WordedSampler(num_steps=2))
    run(prompt_search, ctx, n=1, rewriter=f"{file}@shout", count=2)
    assert events(ctx, "rewrites")[0].value == ["X", "X!"]


def test_wordings_of_a_language_model_are_asked_once_and_charged() -> None:
    with serving(lambda request: Answer('1. a red disc\n- two of "them"\n\n3) x')) as server:
        rewriter = f"chat:base_url={server.base_url},model=tiny"
        ctx = toy_context(WordedSampler(num_steps=2), times=16)
        run(prompt_search, ctx, rewriter=rewriter, count=3)
        assert len(server.requests) == 1 and '"x"' in asked(server.requests[0])
    # the user's own wording counts once
    assert events(ctx, "rewrites")[0].value == ["a red disc", 'two of "them', "x"]
    assert ctx.ledger.calls["chat"] == 1


def test_an_endpoint_without_an_answer_says_why() -> None:
    with (
        serving(lambda request: Answer("<think>hm</think>\n")) as server,
        pytest.raises(ConfigError, match="gave none: the answer is empty"),
    ):
        load_rewriter(f"chat:base_url={server.base_url},model=tiny").rewrite("x", 2)


def test_lines_of_an_answer() -> None:
    answer = '<think>\nlet me see\n</think>\n 1. one\n2) "two"\n* three\n\n• four\n12: five\n3 red cats'
    assert lines(answer) == ["one", "two", "three", "four", "five", "3 red cats"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rewrites": ["{prompt}", " "]}, "needs other wordings of 'x'"),
        ({"rewriter": "shakespeare"}, "did you mean|must be one of chat, .*phrasings"),
        ({"rewriter": "phrasings(x)"}, "has no members"),
        ({"rewriter": "chat:base_url=ftp://x,model=m"}, "base_url|http"),
        ({"rewriter": "chat:model=m"}, "needs base_url"),
        ({"n": 0}, "n must be at least 1"),
    ],
)
def test_rejects(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(prompt_search, toy_context(WordedSampler(num_steps=2)), **parameters)
