from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_vlms
from chat_server import Answer, ChatServer, asked, nobody_there, serving
from PIL import Image, ImageDraw

from samples import clips, some_images
from tts_vision import Prompt
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.parameters import validate
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media
from tts_vision.verifiers._cache import DiskCache, key_of
from tts_vision.verifiers.vlm_judge import Rubric, VLMJudge

ASPECTS = list(Rubric.model_fields)
KEY = "sk-judge-secret-42"


def rubric(overall: float = 5.0, **scores: float) -> str:
    scores = {"overall_score": overall, **scores}
    return json.dumps({a: {"explanation": f"why {a}", "score": scores.get(a, 1.0)} for a in ASPECTS})


def by_size(request: dict[str, Any]) -> Answer:
    """A judge that finds long data better, so that it tells images apart."""
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    return Answer(rubric(len(url) % 1000 / 100))


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(by_size) as running:
        yield running


def judge(base_url: str, **settings: Any) -> VLMJudge:
    return VLMJudge(base_url=base_url, model="eye-1", retries=0, **settings)


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, server: ChatServer) -> VLMJudge:
        return judge(server.base_url)

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return some_images(4)


def test_value_parts_and_reason_are_the_aspects() -> None:
    answer = Answer("Sure:\n```json\n" + rubric(7.5, accuracy_to_prompt=9.0) + "\n```")
    with serving(lambda request: answer) as server:
        (overall,) = judge(server.base_url).score(some_images(1), [Prompt("a {red} dog")])
        (accuracy,) = judge(server.base_url, metric="accuracy_to_prompt").score(some_images(1), [Prompt("x")])
    assert (overall.value, overall.reason) == (7.5, "why overall_score")
    assert (accuracy.value, accuracy.reason) == (9.0, "why accuracy_to_prompt")
    assert list(overall.parts) == ASPECTS and overall.parts["accuracy_to_prompt"] == 9.0
    question, wanted = asked(server.requests[0]), server.requests[0]["response_format"]["json_schema"]
    assert "a {red} dog" in question and all(aspect in question for aspect in ASPECTS)
    assert wanted == {"name": "rubric", "strict": True, "schema": Rubric.model_json_schema()}


def test_a_server_that_knows_no_schema_is_told_none(server: ChatServer) -> None:
    judge(server.base_url, structured=False).score(some_images(1), [Prompt("x")])
    assert "response_format" not in server.requests[0]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("I like it very much!", "it holds no JSON object"),
        (rubric().replace("overall_score", "total"), "overall_score: Field required"),
        (rubric(11.0), "overall_score.score"),
    ],
)
def test_what_is_no_rubric_is_asked_for_once_more(bad: str, why: str) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return Answer(bad if len(request["messages"]) == 1 else rubric(3.0))

    with serving(answer) as server:
        (score,) = judge(server.base_url).score(some_images(1), [Prompt("x")])
        assert score.value == 3.0
    first, second = server.requests
    assert second["messages"][:2] == [first["messages"][0], {"role": "assistant", "content": bad}]
    assert why in asked(second)


def marks(overall: Any) -> str:
    """A rubric whose last mark is written in another way."""
    return json.dumps({**json.loads(rubric()), "overall_score": overall})


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (f"<think>Perhaps {rubric(1.0)} or {{...}}?</think>\n{rubric(6.0)}", 6.0),
        (f"reasoning without its opening tag {rubric(1.0)}</think>{rubric(6.0)}", 6.0),
        (f"A first {{draft}}: {rubric(2.0)} After a second look: {rubric(6.0)}", 6.0),
        (json.dumps([{key: part} for key, part in json.loads(rubric(6.0)).items()]), 6.0),
        (f"[{rubric(6.0)}]", 6.0),
        (json.dumps({"judgement": json.loads(rubric(6.0))}), 6.0),
        (json.dumps({**json.loads(rubric(6.0)), "confidence": 0.9}), 6.0),
        (marks({"explanation": "x", "score": "7/10"}), 7.0),
        (marks({"explanation": "x", "score": "70 out of 100"}), 7.0),
        (marks({"explanation": "x", "score": " 7.5 "}), 7.5),
        (marks({"score": 7, "note": "good"}), 7.0),
        (marks("7/10"), 7.0),
        (marks(7), 7.0),
    ],
)
def test_a_rubric_is_read_at_once_however_it_is_wrapped(said: str, value: float) -> None:
    with serving(lambda request: Answer(said)) as server:
        (score,) = judge(server.base_url).score(some_images(1), [Prompt("x")])
    assert score.value == value and len(score.parts) == len(ASPECTS) and len(server.requests) == 1


@pytest.mark.parametrize("mark", ["11/10", "good", "-3", None, [7]])
def test_what_is_no_mark_is_asked_for_once_more(mark: Any) -> None:
    answers = iter([Answer(marks({"explanation": "x", "score": mark})), Answer(rubric(3.0))])
    with serving(lambda request: next(answers)) as server:
        assert judge(server.base_url).score(some_images(1), [Prompt("x")])[0].value == 3.0
    assert "overall_score" in asked(server.requests[1])


def test_reasoning_is_not_sent_back() -> None:
    answers = iter([Answer("<think>hm</think>Nice."), Answer(rubric(3.0))])
    with serving(lambda request: next(answers)) as server:
        judge(server.base_url).score(some_images(1), [Prompt("x")])
    assert server.requests[1]["messages"][1]["content"] == "Nice."


def test_a_local_model_may_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = VLMJudge(checkpoint="none", device="cpu", max_new_tokens=9)
    told: list[int] = []

    def generate(images: Any, questions: Any, *, max_new_tokens: int) -> list[str]:
        told.append(max_new_tokens)
        return [f"<think>{{</think>{rubric(6.0)}"] * len(questions)

    monkeypatch.setattr(verifier._judge, "load", lambda: None)
    monkeypatch.setattr(verifier._judge, "generate", generate)
    assert verifier.score(some_images(2), [Prompt("x")] * 2)[1].value == 6.0 and told[0] == 9


def test_prose_twice_leaves_only_that_image_unscored() -> None:
    def answer(request: dict[str, Any]) -> Answer:
        first = request["messages"][0]["content"][-1]["text"]
        return Answer(f"What a lovely image! {KEY}" if "prose" in first else rubric(4.0))

    with serving(answer) as server:
        prompts = [Prompt("a"), Prompt("prose"), Prompt("b")]
        scores = judge(server.base_url).score(some_images(3), prompts)
    assert [score.value for score in scores] == pytest.approx([4.0, math.nan, 4.0], nan_ok=True)
    assert "does not follow the rubric" in (scores[1].reason or "") and "lovely" in (scores[1].reason or "")
    assert KEY not in repr(scores)
    assert len(server.requests) == 4


def test_odd_samples_and_a_broken_server_cost_only_themselves() -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return Answer(status=400, body=f"no {KEY}") if "bad" in asked(request) else Answer(rubric())

    media = [*some_images(2), clips(1)[0], Image.new("RGBA", (1, 1)), Image.new("L", (5, 5))]
    with serving(answer) as server:
        scores = judge(server.base_url).score(media, [Prompt(t) for t in ("good", "bad", "c", "d", "e")])
    assert [math.isnan(s.value) for s in scores] == [False, True, True, False, False]
    assert "HTTP 400" in (scores[1].reason or "") and KEY not in repr(scores)


def test_an_endpoint_that_is_down_leaves_all_unscored() -> None:
    scores = judge(nobody_there()).score(some_images(3), [Prompt("x")] * 3)
    assert all(math.isnan(s.value) and "cannot be reached" in (s.reason or "") for s in scores)


def test_the_same_image_is_asked_about_once(server: ChatServer) -> None:
    image = some_images(1) * 3
    scores = judge(server.base_url).score(image, [Prompt("a"), Prompt("a"), Prompt("b")])
    assert len(server.requests) == 2 and scores[0] == scores[1]


def test_the_cache_answers_for_the_model(server: ChatServer, tmp_path: Path) -> None:
    media, prompts = some_images(3), [Prompt("x")] * 3
    first = judge(server.base_url, cache=tmp_path / "c").score(media, prompts)
    assert len(server.requests) == 3
    again = judge(server.base_url, cache=tmp_path / "c", metric="accuracy_to_prompt").score(media, prompts)
    assert len(server.requests) == 3
    assert [s.parts for s in again] == [s.parts for s in first] and again[0].value == 1.0
    for other in (
        {"media": some_images(1, seed=9)},
        {"prompt": Prompt("y")},
        {"settings": {"temperature": 1.0}},
    ):
        asking = judge(server.base_url, cache=tmp_path / "c", **other.get("settings", {}))  # type: ignore[arg-type]
        before = len(server.requests)
        asking.score(other.get("media", media[:1]), [other.get("prompt", prompts[0])])  # type: ignore[arg-type,list-item]
        assert len(server.requests) == before + 1
    kept = "".join(file.read_text() for file in (tmp_path / "c").rglob("*") if file.is_file())
    assert KEY not in kept


def test_a_failure_is_not_kept_and_a_spoilt_file_is_asked_for_again(tmp_path: Path) -> None:
    answers = iter([Answer(status=400), Answer(rubric(2.0)), Answer(rubric(3.0))])
    with serving(lambda request: next(answers)) as server:
        asking = judge(server.base_url, cache=tmp_path)
        values = [asking.score(some_images(1), [Prompt("x")])[0].value for _ in range(3)]
        assert values == pytest.approx([math.nan, 2.0, 2.0], nan_ok=True)
        (file,) = tmp_path.rglob("*.json")
        file.write_text(file.read_text()[:20])
        assert asking.score(some_images(1), [Prompt("x")])[0].value == 3.0


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    value, seen = {"numbers": list(range(2000))}, []

    def work() -> None:
        cache = DiskCache(tmp_path)
        for _ in range(30):
            cache.put("abcd", value)
            seen.append(cache.get("abcd") == value)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(seen) and len(seen) == 120
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["abcd.json"]


def test_a_key_is_of_pixels_and_facts() -> None:
    a, b = some_images(2)
    keys = {key_of(a, "x"), key_of(b, "x"), key_of(a, "y"), key_of(a.convert("L"), "x")}
    assert len(keys) == 4 and key_of(a.copy(), "x") in keys


def test_a_cache_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cache must be a folder"):
        VLMJudge(cache=tmp_path / "file")


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric": "beauty"},
        {"model": "m"},
        {"base_url": "http://host/v1"},
        {"base_url": "host", "model": "m"},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        VLMJudge(**wrong)


def test_parameters_come_from_a_command_line() -> None:
    given = {
        "base_url": "http://host/v1",
        "model": "m",
        "cache": "/tmp/x",
        "temperature": "none",
        "timeout": "5",
    }
    values = validate(lookup("verifier", "vlm_judge").target, given, "verifier 'vlm_judge'")
    assert values["cache"] == Path("/tmp/x") and values["temperature"] is None and values["timeout"] == 5.0


class TestOnThisMachine:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tiny_vlms.qwen_vl(tmp_path_factory.mktemp("judge"))

    def local(self, folder: Path) -> VLMJudge:
        return VLMJudge(checkpoint=str(folder), device="cpu", dtype="float32", max_new_tokens=4)

    def test_babble_is_no_score(self, folder: Path) -> None:
        for score in self.local(folder).score(some_images(2), [Prompt("x")] * 2):
            assert math.isnan(score.value) and "does not follow the rubric" in (score.reason or "")

    def test_a_good_answer_is_a_score(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        verifier = self.local(folder)
        questions: list[Any] = []

        def generate(shown: Any, asked: Any, *, max_new_tokens: int) -> list[str]:
            questions.extend(asked)
            return ["hm" if isinstance(a, str) and "second" in a else rubric(6.0) for a in asked]

        monkeypatch.setattr(verifier._judge, "generate", generate)
        scores = verifier.score(some_images(2), [Prompt("first"), Prompt("second")])
        assert [score.value for score in scores] == [6.0, 6.0]
        assert len(questions) == 3 and questions[2][1] == "hm"

    def test_weights_are_loaded_strictly(self, tmp_path: Path) -> None:
        folder = tiny_vlms.qwen_vl(tmp_path)
        tiny_vlms.rename_key(folder / "model.safetensors", "model.norm.weight", "model.norm.wrong")
        with pytest.raises(VerifierError, match=r"'vlm_judge'.*norm.*wrong"):
            self.local(folder).load()


@pytest.mark.download
def test_real_weights_know_a_red_circle() -> None:
    """A drawn red circle is more accurate to "a red circle" than to "a crowded market at night"."""
    checkpoint = os.environ.get("TTS_VISION_VLM")
    if not checkpoint:
        pytest.skip("set TTS_VISION_VLM to a checkpoint of an image-text-to-text model")
    drawn = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(drawn).ellipse((64, 64, 192, 192), fill="red")
    verifier = VLMJudge(checkpoint=checkpoint, metric="accuracy_to_prompt")
    right, wrong = verifier.score([drawn] * 2, [Prompt("a red circle"), Prompt("a crowded market at night")])
    assert right.value > wrong.value
