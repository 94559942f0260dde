"""Making a sample again from its lineage."""

from __future__ import annotations

from pathlib import Path

import pytest

from toy_plugins import MODEL, VERIFIER, first_coordinate
from tts_vision import search
from tts_vision.condition import Asset
from tts_vision.context import SearchContext
from tts_vision.errors import ConfigError
from tts_vision.media import pixels
from tts_vision.replays import recreate, replay
from tts_vision.testing.toys import GaussianMixtureSampler, TargetReward, position_of
from tts_vision.types import Cost, Prompt


def no_asset(name: str) -> Asset:
    raise AssertionError(f"no condition has an asset but {name!r} is asked for")


@pytest.mark.parametrize(
    "algorithm",
    [
        "best_of_n",
        "zero_order",
        "search_over_paths",
        "evosearch",
        "evosearch:strict_reference=true",
        "fk_steering",
        "reno:iterations=3",
        "das:alpha=0.5",
        "gradient_guidance:repeats=2",
        "beam_search:branch=2",
        "greedy:branch=2",
        "prompt_search",
        "tts_var:clustering=false",
    ],
)
def test_the_best_sample_is_made_again(algorithm: str, tmp_path: Path) -> None:
    search(MODEL, "a", algorithm=algorithm, verifier=VERIFIER, budget="8x", seed=2, output=tmp_path)
    again = replay(tmp_path)
    assert again.max_difference == 0
    assert again.path.exists()
    assert again.lineage[0].origin == "init"


GUIDED = ["reno", "das", "gradient_guidance"]


@pytest.mark.parametrize("algorithm", GUIDED)
def test_every_sample_of_a_search_with_gradients_is_made_again(algorithm: str) -> None:
    sampler, reward = GaussianMixtureSampler(num_steps=6, order=2), TargetReward()
    result = search(sampler, "a", algorithm=algorithm, verifier=reward, budget="12x")
    assert any(event.what == "gradient" for event in result.trace)
    context = SearchContext(sampler, reward, Prompt("a"), seed=0)
    for candidate in result.population:
        chain = result.lineage(candidate.uid)
        media = recreate(context, chain, candidate.step, no_asset)
        # a batch may round otherwise than one row
        assert position_of(media) == pytest.approx(position_of(candidate.load()), abs=1e-5)


@pytest.mark.parametrize("algorithm", ["search_over_paths", "evosearch", "fk_steering"])
def test_every_sample_of_a_search_is_made_again(algorithm: str) -> None:
    sampler = GaussianMixtureSampler(num_steps=6, order=2)
    result = search(sampler, "a", algorithm=algorithm, verifier=first_coordinate, budget="8x")
    context = SearchContext(sampler, TargetReward(), Prompt("a"), seed=0)
    for candidate in result.population:
        media = recreate(context, result.lineage(candidate.uid), candidate.step, no_asset)
        assert (pixels(media) == pixels(candidate.load())).all()
    assert context.ledger.spent == Cost(), "a replay is not charged"


def test_a_live_pipeline_is_given_again(tmp_path: Path) -> None:
    sampler = GaussianMixtureSampler(num_steps=6)
    search(sampler, "a", verifier=first_coordinate, budget="4x", output=tmp_path)
    assert replay(tmp_path, sampler).max_difference == 0
    with pytest.raises(ConfigError, match="live model"):
        replay(tmp_path)


def test_gradients_of_a_live_verifier_are_given_again(tmp_path: Path) -> None:
    search(MODEL, "a", algorithm="reno", verifier=TargetReward(), budget="8x", output=tmp_path)
    with pytest.raises(ConfigError, match="live verifier"):
        replay(tmp_path)
    assert replay(tmp_path, verifier=TargetReward()).max_difference == 0


def test_another_model_makes_another_sample(tmp_path: Path) -> None:
    sampler = GaussianMixtureSampler(num_steps=6)
    search(sampler, "a", verifier=first_coordinate, budget="4x", output=tmp_path)
    assert replay(tmp_path, GaussianMixtureSampler(num_steps=6, eta=0.5)).max_difference > 0


def test_an_unfinished_search_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="A replay needs a finished search"):
        replay(tmp_path)
