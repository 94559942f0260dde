from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vlms
from chat_server import Answer, ChatServer, asked, nobody_there, serving
from PIL import Image, ImageDraw

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.chat import Reply
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract, values
from tts_vision.types import Media, Score
from tts_vision.verifier import Asked, Best, Verifier
from tts_vision.verifiers._structured import read
from tts_vision.verifiers._vlm import VisionLanguageModel
from tts_vision.verifiers.tournament import Tournament, Winner, bradley_terry, elo, swiss_pairs, verdict

PROMPT = Prompt("a bright day")


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (6, 6), (level,) * 3)


def levels(request: dict[str, Any]) -> list[float]:
    """The brightness of the images of a request, in order."""
    urls = [part["image_url"]["url"] for part in request["messages"][0]["content"][:-1]]
    shown = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in urls]
    return [float(np.asarray(image).mean()) for image in shown]


def prefers_bright(request: dict[str, Any]) -> Answer:
    first, second = levels(request)
    return Answer('{"winner": "%s"}' % ("first" if first > second else "second"))


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(prefers_bright) as running:
        yield running


def tournament(base_url: str, **settings: Any) -> Tournament:
    return Tournament(base_url=base_url, model="eye-1", retries=0, **settings)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, server: ChatServer) -> Tournament:
        return tournament(server.base_url)

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return some_images(5)

    def test_samples_are_independent(
        self, verifier: Verifier, media: Sequence[Media], prompt: Prompt
    ) -> None:
        """Samples of one prompt are not, by design; their order and other prompts must not matter."""
        together = values(verifier.score(media, [prompt] * len(media)))
        backwards = values(verifier.score(list(reversed(media)), [prompt] * len(media)))
        assert backwards[::-1] == pytest.approx(together)
        other = [Prompt("another"), prompt]
        mixed = values(verifier.score([m for m in media for _ in other], other * len(media)))
        assert mixed[1::2] == pytest.approx(together)


# ----- ratings


def test_two_players_have_the_odds_of_their_games() -> None:
    wins = np.array([[0.0, 6.0], [2.0, 0.0]])
    a, b = bradley_terry(wins, prior=1e-9)
    assert a - b == pytest.approx(math.log(3)) and a + b == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("won", "lost"), [(3, 1), (5, 0), (0, 2), (0, 0), (2.5, 2.5)])
def test_against_average_strength_the_prior_counts_as_games(won: float, lost: float) -> None:
    wins = np.array([[0.0, won], [lost, 0.0]])
    free, known = bradley_terry(wins, prior=0.1, fixed={1: 0.0})
    assert known == 0.0 and free == pytest.approx(math.log((won + 0.1) / (lost + 0.1)))


def test_a_known_strength_moves_the_scale() -> None:
    wins = np.array([[0.0, 6.0], [2.0, 0.0]])
    assert bradley_terry(wins, prior=1e-9, fixed={1: 5.0}).tolist() == pytest.approx([5 + math.log(3), 5.0])


def test_everybody_wins_as_often_as_expected() -> None:
    wins = np.random.default_rng(0).integers(0, 9, (6, 6)) * (1 - np.eye(6)) / 2
    strengths = bradley_terry(wins, prior=0.1)
    expected = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    alone = 1 / (1 + np.exp(-strengths))
    surplus = wins.sum(1) + 0.1 - ((wins + wins.T) * expected).sum(1) - 0.2 * alone
    assert surplus == pytest.approx(0, abs=1e-8)


def test_the_undefeated_stay_finite_and_in_order() -> None:
    wins = np.triu(np.ones((8, 8)), 1) * 50  # each beats all that follow, always
    strengths = bradley_terry(wins, prior=0.01)
    assert np.isfinite(strengths).all() and (np.diff(strengths) < 0).all()
    assert strengths == pytest.approx(-strengths[::-1], abs=1e-6)


def test_elo_moves_by_what_was_unexpected() -> None:
    assert elo(2, [(0, 1, 1.0)]) == [1016.0, 984.0]
    assert elo(2, [(0, 1, 0.5)]) == [1000.0, 1000.0]
    favourite = elo(2, [(0, 1, 0.0)], fixed={1: 1400.0})
    assert favourite == pytest.approx([1000 - 32 / 11, 1400.0])
    games = [(0, 1, 1.0), (1, 2, 0.5), (2, 0, 0.0), (0, 1, 0.5)]
    assert sum(elo(3, games)) == pytest.approx(3000) and elo(3, games) != elo(3, games[::-1])


def test_swiss_pairs_are_neighbours_who_have_not_met() -> None:
    assert swiss_pairs([3, 1, 2, 0], set()) == [(3, 1), (2, 0)]
    assert swiss_pairs([3, 1, 2, 0], {frozenset((3, 1))}) == [(3, 2), (1, 0)]
    assert swiss_pairs([0, 1, 2], {frozenset((0, 1))}) == [(0, 2)]
    assert swiss_pairs([0, 1], {frozenset((0, 1))}) == swiss_pairs([4], set()) == []


@pytest.mark.parametrize(
    ("one", "two", "won"),
    [(0.9, 0.2, 1.0), (0.1, 0.7, 0.0), (0.9, 0.8, 0.5), (0.2, 0.3, 0.5), (0.5, 0.2, 0.5)],
)
def test_a_preference_for_a_position_is_a_tie(one: float, two: float, won: float) -> None:
    assert verdict(one, two) == won


# ----- tournaments


@pytest.mark.parametrize("aggregate", ["bradley_terry", "elo"])
def test_finds_the_order_from_few_games(server: ChatServer, aggregate: Any) -> None:
    media = [grey(level) for level in (90, 10, 250, 170, 50, 130, 30, 210)]
    scores = tournament(server.base_url, aggregate=aggregate, rounds=3).score(media, [PROMPT] * 8)
    ranked = sorted(range(8), key=lambda i: -scores[i].value)
    assert (ranked[0], ranked[-1]) == (2, 1)
    assert len(server.requests) == 3 * 4 * 2  # of 56 that all against all would take
    for score in scores:
        assert score.parts["wins"] + score.parts["losses"] == 3 and score.parts["ties"] == 0
    assert scores[2].parts["wins"] == 3 and scores[1].parts["losses"] == 3


def test_every_pair_is_asked_in_both_orders_and_once(server: ChatServer) -> None:
    tournament(server.base_url, rounds=9).score([grey(i * 50) for i in range(5)], [PROMPT] * 5)
    pairs = [tuple(levels(request)) for request in server.requests]
    assert sorted(pairs) == sorted((b, a) for a, b in pairs)
    assert len(pairs) == len(set(pairs)) == 5 * 4
    assert all('for the prompt "a bright day"' in asked(request) for request in server.requests)
    schema = server.requests[0]["response_format"]["json_schema"]
    assert schema["name"] == "winner" and schema["schema"]["properties"]["winner"]["enum"] == [
        "first",
        "second",
    ]


def test_a_judge_that_looks_at_the_position_alone_ties_all() -> None:
    with serving(lambda request: Answer('{"winner": "first"}')) as server:
        scores = tournament(server.base_url, rounds=2).score(some_images(4), [PROMPT] * 4)
    assert values(scores) == pytest.approx([0.0] * 4)
    assert all(score.parts == {"wins": 0.0, "losses": 0.0, "ties": 2.0} for score in scores)


def test_samples_of_different_prompts_never_meet(server: ChatServer) -> None:
    media = [grey(level) for level in (10, 200, 20, 220)]
    tournament(server.base_url).score(media, [Prompt("a"), Prompt("b")] * 2)
    met = {(tuple(sorted(levels(r))), 'prompt "a"' in asked(r)) for r in server.requests}
    assert met == {((10.0, 20.0), True), ((200.0, 220.0), False)}


def test_a_lone_sample_is_average(server: ChatServer) -> None:
    assert tournament(server.base_url).score([], []) == []
    (score,) = tournament(server.base_url).score(some_images(1), [PROMPT])
    assert score.value == 0.0 and "no other sample" in (score.reason or "") and not server.requests
    (score,) = tournament(server.base_url, aggregate="elo").score(some_images(1), [PROMPT])
    assert score.value == 1000.0


def test_odd_samples_do_not_play(server: ChatServer) -> None:
    media = [
        grey(10),
        clips(1)[0],
        grey(200).convert("RGBA"),
        grey(90).convert("L"),
        Image.new("RGB", (1, 1)),
    ]
    scores = tournament(server.base_url).score(media, [PROMPT] * 5)
    assert [math.isnan(score.value) for score in scores] == [False, True, False, False, False]
    assert max(scores, key=lambda s: s.value if not math.isnan(s.value) else -9) is scores[2]


def test_failed_questions_cost_only_their_games() -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return Answer("Both are lovely.") if 66.0 in levels(request) else prefers_bright(request)

    media = [grey(level) for level in (10, 200, 66, 120)]
    with serving(answer) as server:
        scores = tournament(server.base_url, rounds=3).score(media, [PROMPT] * 4)
    assert [math.isnan(s.value) for s in scores] == [False, False, True, False]
    assert "it holds no JSON object; it said 'Both are lovely.'" in (scores[2].reason or "")
    assert scores[1].value > scores[3].value > scores[0].value


def test_an_endpoint_that_is_down_leaves_all_unscored() -> None:
    scores = tournament(nobody_there()).score(some_images(3), [PROMPT] * 3)
    assert all(math.isnan(s.value) and "cannot be reached" in (s.reason or "") for s in scores)


# ----- the best sample so far


def best(sample: Media, score: Score | float) -> Asked:
    """Asked while a search has a best sample."""
    return Asked(best=Best(lambda: sample, score if isinstance(score, Score) else Score(value=score)))


def test_the_best_keeps_its_rating_and_others_are_rated_against_it(server: ChatServer) -> None:
    verifier = tournament(server.base_url, prior=0.1)
    assert verifier.relative and not verifier.settles
    better, worse = (verifier.score([grey(level)], [PROMPT], best(grey(100), 0.0))[0] for level in (200, 50))
    assert better.value == pytest.approx(math.log(1.1 / 0.1)) == -worse.value
    for rating in (-2.0, 0.0, 3.0):
        media = [grey(level) for level in (200, 50, 70)]
        beside = verifier.score(media, [PROMPT] * 3, best(grey(100), rating))
        assert [score.value > rating for score in beside] == [True, False, False]
        assert len(beside) == 3 and sum(score.parts["wins"] for score in beside) > 0


def test_ratings_of_calls_in_turn_are_on_one_scale(server: ChatServer) -> None:
    verifier = tournament(server.base_url)
    batches = [[60, 40, 80], [90, 20, 85], [120, 110, 100]]
    asked, highest = Asked(), -math.inf
    for batch in batches:
        media = [grey(level) for level in batch]
        scores = verifier.score(media, [PROMPT] * 3, asked)
        top = max(range(3), key=lambda i: scores[i].value)
        assert batch[top] == max(batch)
        assert scores[top].value > highest
        asked, highest = best(media[top], scores[top]), scores[top].value


def test_elo_beside_the_best(server: ChatServer) -> None:
    verifier = tournament(server.base_url, aggregate="elo")
    (score,) = verifier.score([grey(200)], [PROMPT], best(grey(100), 1400.0))
    assert score.value == pytest.approx(1000 + 32 * 10 / 11)


@pytest.mark.parametrize(
    ("sample", "score"), [(grey(1), Score.unscored("down")), (clips(1)[0], Score(value=1.0))]
)
def test_without_a_usable_best_the_others_play_alone(server: ChatServer, sample: Media, score: Score) -> None:
    verifier = tournament(server.base_url)
    media, prompts = some_images(3), [PROMPT] * 3
    found = verifier.score(media, prompts, best(sample, score))
    assert values(found) == values(verifier.score(media, prompts))


# ----- a model on this machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlms.qwen_vl(tmp_path_factory.mktemp("tournament"))


def local(folder: Path, **settings: Any) -> Tournament:
    return Tournament(checkpoint=str(folder), device="cpu", dtype="float32", **settings)


def test_a_local_model_is_asked_for_first_or_second(folder: Path) -> None:
    media = some_images(6, size=(60, 40), seed=3)
    question = (
        'Here are two images that were made for the prompt "a bright day". Which one shows better what the '
        "prompt asks for? If both show it equally well, which one looks better? Answer with one word, first "
        "or second."
    )
    vlm = VisionLanguageModel(str(folder), owner="x", device="cpu")
    for a, b in zip(media[::2], media[1::2]):
        one, two = vlm.answer_probabilities([[a, b], [b, a]], [question] * 2, ["first"], ["second"])
        scores = local(folder).score([a, b], [PROMPT] * 2)
        won = verdict(one, two)
        assert [scores[0].parts[part] for part in ("wins", "losses", "ties")] == [
            float(won == 1),
            float(won == 0),
            float(won == 0.5),
        ]
        assert scores[0].value == pytest.approx(-scores[1].value)


def test_a_pair_that_a_local_model_cannot_take_costs_only_its_game(folder: Path) -> None:
    media = [*some_images(3), Image.new("RGB", (900, 2))]
    scores = local(folder, rounds=3).score(media, [PROMPT] * 4)
    assert [math.isnan(score.value) for score in scores] == [False, False, False, True]
    assert "cannot take" in (scores[3].reason or "")


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    path = tiny_vlms.qwen_vl(tmp_path)
    tiny_vlms.rename_key(path / "model.safetensors", "model.norm.weight", "model.norm.wrong")
    with pytest.raises(VerifierError, match=r"'tournament'.*norm.*wrong"):
        local(path).load()


@pytest.mark.parametrize(
    "wrong",
    [{"rounds": 0}, {"prior": 0.0}, {"aggregate": "mean"}, {"model": "m"}, {"base_url": "http://host/v1"}],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Tournament(**wrong)


def test_is_registered() -> None:
    assert lookup("verifier", "tournament").target is Tournament


@pytest.mark.download
def test_real_weights_know_a_red_circle() -> None:
    """Of a drawn red circle and a drawn blue square, the circle wins "a red circle"."""
    checkpoint = os.environ.get("TTS_VISION_VLM")
    if not checkpoint:
        pytest.skip("set TTS_VISION_VLM to a checkpoint of an image-text-to-text model")
    circle, square = (Image.new("RGB", (256, 256), "white") for _ in range(2))
    ImageDraw.Draw(circle).ellipse((64, 64, 192, 192), fill="red")
    ImageDraw.Draw(square).rectangle((64, 64, 192, 192), fill="blue")
    right, wrong = Tournament(checkpoint=checkpoint).score([circle, square], [Prompt("a red circle")] * 2)
    assert right.value > wrong.value


@pytest.mark.parametrize(
    ("said", "first"),
    [
        ('{"winner": "first"}', 1.0),
        ("<think>the second? {</think> First.", 1.0),
        ('{"winner": "Image 2", "why": "sharper"}', 0.0),
        ('{"winner": 1}', 1.0),
        ('If both {were} equal: {"winner": "first"}, but they are not: {"winner": "second"}', 0.0),
        ("The second image.", 0.0),
        ("first or second", None),
        ("I cannot say which of the two would be the first choice", None),
    ],
)
def test_a_winner_is_read_however_it_is_said(said: str, first: float | None) -> None:
    answer = read(Reply(said), Winner, "winner")
    assert (answer.winner == "first" if isinstance(answer, Winner) else None) == first
