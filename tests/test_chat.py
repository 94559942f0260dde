import base64
import io
import json
import logging
from typing import Any

import numpy as np
import pytest
from chat_server import Answer, asked, nobody_there, serving
from PIL import Image

from tts_vision import chat
from tts_vision.chat import (
    ENCODED_IMAGES,
    LONGEST_ANSWER,
    ChatEndpoint,
    data_url,
    json_values,
    without_reasoning,
)
from tts_vision.errors import ConfigError
from tts_vision.rewriters.chat import lines

KEY = "sk-secret-0123456789"
ASK: dict[str, Any] = {"owner": "judge", "key_variable": "SOME_KEY"}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")


def some_images(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rows) for rows in rng.integers(0, 256, (n, 5, 6, 3), dtype=np.uint8)]


def endpoint(base_url: str, waits: list[float] | None = None, **settings: Any) -> ChatEndpoint:
    sleep = (lambda seconds: None) if waits is None else waits.append
    return ChatEndpoint(base_url, "eye-1", **ASK, sleep=sleep, jitter=lambda: 0.5, **settings)


def test_asks_as_the_protocol_says() -> None:
    shown = some_images(2)
    schema = {"type": "object"}
    with serving(lambda request: Answer("a fox")) as server:
        replies = endpoint(server.base_url + "/").ask([shown], [["What?", "A fox.", "Sure?"]], schema=schema)
    assert [reply.text for reply in replies] == ["a fox"] and replies[0].reason is None
    (request,) = server.requests
    assert server.keys == [f"Bearer {KEY}"]
    assert request["model"] == "eye-1" and request["temperature"] == 0.0
    assert request["max_tokens"] == LONGEST_ANSWER and "max_completion_tokens" not in request
    assert request["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": schema}
    assert [m["role"] for m in request["messages"]] == ["user", "assistant", "user"]
    *parts, text = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    assert request["messages"][1]["content"] == "A fox."
    for part, image in zip(parts, shown, strict=True):
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/jpeg;base64"
        sent = Image.open(io.BytesIO(base64.b64decode(data)))
        assert sent.format == "JPEG" and sent.size == image.size


def test_answers_come_in_the_order_of_the_questions_though_they_finish_otherwise() -> None:
    questions = [str(i) for i in range(6)]
    slow_first = {"0": 0.2, "1": 0.1}
    with serving(lambda r: Answer(f"to {asked(r)}", delay=slow_first.get(asked(r), 0.02))) as server:
        replies = endpoint(server.base_url, parallel=3).ask([[]] * 6, questions)
    assert [reply.text for reply in replies] == [f"to {i}" for i in questions]
    assert server.most == 3


def test_tries_again_with_growing_waits() -> None:
    codes = iter([500, 429, 503, 200])
    waits: list[float] = []
    with serving(lambda request: Answer("at last", status=next(codes))) as server:
        (reply,) = endpoint(server.base_url, waits, backoff=2.0).ask([[]], ["?"])
    assert reply.text == "at last"
    assert waits == [1.5, 3.0, 6.0]  # 2, 4, 8 times (1 + 0.5) / 2


def test_waits_as_long_as_the_server_asks() -> None:
    answers = iter([Answer(status=429, headers={"Retry-After": "7"}), Answer("now")])
    waits: list[float] = []
    with serving(lambda request: next(answers)) as server:
        assert endpoint(server.base_url, waits).ask([[]], ["?"])[0].text == "now"
    assert waits == [7.0]


def test_what_cannot_pass_is_not_tried_again() -> None:
    with serving(lambda request: Answer(status=404, body="no such model")) as server:
        (reply,) = endpoint(server.base_url).ask([[]], ["?"])
    assert "HTTP 404: no such model" in (reply.reason or "") and len(server.requests) == 1


def test_a_failure_costs_only_its_own_sample() -> None:
    bad = {"2": Answer(status=500, body="boom"), "4": Answer(body="<html>"), "5": Answer("")}
    with serving(lambda r: bad.get(asked(r), Answer("fine"))) as server:
        replies = endpoint(server.base_url, retries=1).ask([[]] * 6, [str(i) for i in range(6)])
    assert [reply.text for reply in replies] == ["fine", "fine", "", "fine", "", ""]
    assert "HTTP 500: boom" in (replies[2].reason or "")
    assert "no chat completion" in (replies[4].reason or "")
    assert "answered nothing" in (replies[5].reason or "")
    assert len(server.requests) == 6 + 2  # a server that fails and an empty answer are tried again


def test_an_empty_answer_is_tried_again() -> None:
    answers = iter(
        [Answer(""), Answer(body=json.dumps({"choices": [{"message": {"content": None}}]})), Answer("a")]
    )
    waits: list[float] = []
    with serving(lambda request: next(answers)) as server:
        (reply,) = endpoint(server.base_url, waits).ask([[]], ["?"])
    assert reply.text == "a" and len(waits) == 2


def test_an_answer_that_reached_its_limit_says_so() -> None:
    def ended(text: str) -> Answer:
        return Answer(
            body=json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "length"}]})
        )

    answers = iter([ended("half an ans"), ended("")])
    with serving(lambda request: next(answers)) as server:
        asking = endpoint(server.base_url, parallel=1, max_tokens=7)
        half, nothing = asking.ask([[]] * 2, ["a", "b"])
    assert (half.text, half.cut) == ("half an ans", True)
    assert "raise max_tokens" in (nothing.reason or "")
    assert [request["max_tokens"] for request in server.requests] == [7, 7]  # it would be cut again


def test_an_answer_in_parts_and_an_error_in_the_body_are_read() -> None:
    parts = [{"type": "text", "text": "two "}, {"type": "refusal"}, {"type": "text", "text": "halves"}]
    bodies = {
        "parts": {"choices": [{"message": {"content": parts}}]},
        "error": {"error": {"message": "no credit", "code": 402}},
    }
    with serving(lambda r: Answer(body=json.dumps(bodies[asked(r)]))) as server:
        read, failed = endpoint(server.base_url).ask([[]] * 2, ["parts", "error"])
    assert read.text == "two halves"
    assert "answered with an error: no credit" in (failed.reason or "") and len(server.requests) == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("temperature", "Unsupported value: 'temperature' does not support 0.0 with this model."),
        (
            "response_format",
            '{"error": {"message": "This model does not support response format json_schema"}}',
        ),
        ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
    ],
)
def test_an_option_that_a_server_refuses_is_dropped_once_and_remembered(option: str, said: str) -> None:
    def answer(request: dict[str, Any]) -> Answer:
        return Answer(said, status=400, body=said) if option in request else Answer("fine")

    waits: list[float] = []
    with serving(answer) as server:
        asking = endpoint(server.base_url, waits, retries=0)
        with pytest.warns(UserWarning, match=f"refuses {option}; judge asks it without"):
            assert asking.ask([[]], ["?"], schema={})[0].text == "fine"
        assert [option in request for request in server.requests] == [True, False]
        assert all("messages" in request and "model" in request for request in server.requests)
        assert ("max_completion_tokens" in server.requests[1]) == (option == "max_tokens")
        assert asking.ask([[]] * 3, ["?"] * 3, schema={})[2].text == "fine"
        assert len(server.requests) == 5 and option not in server.requests[-1]
    assert not waits  # it is no failure that passes


def test_a_server_that_refuses_everything_is_asked_the_bare_question() -> None:
    def answer(request: dict[str, Any]) -> Answer:
        extra = [key for key in request if key not in {"model", "messages"}]
        return Answer(status=422, body=f"unknown field {extra[0]}") if extra else Answer("fine")

    with (
        serving(answer) as server,
        pytest.warns(UserWarning, match="max_completion_tokens and max_tokens and"),
    ):
        assert endpoint(server.base_url).ask([[]], ["?"], schema={})[0].text == "fine"
    assert set(server.requests[-1]) == {"model", "messages"} and len(server.requests) == 5


def test_what_was_refused_for_another_reason_is_not_remembered() -> None:
    said = "your prompt speaks of temperature, which is a forbidden word"
    with serving(lambda request: Answer(status=400, body=said)) as server:
        asking = endpoint(server.base_url)
        (reply,) = asking.ask([[]], ["?"])
    assert "HTTP 400" in (reply.reason or "") and not asking.refused and len(server.requests) == 2


def test_each_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Image.Image] = []

    def counting(image: Image.Image, image_format: Any = "jpeg") -> str:
        encoded.append(image)
        return data_url(image, image_format)

    monkeypatch.setattr(chat, "data_url", counting)
    a, b = some_images(2)
    with serving(lambda r: Answer("fine")) as server:
        asking = endpoint(server.base_url)
        asking.ask([[a, b], [b, a], [a.copy()]], ["?"] * 3)
        asking.ask([[b]], ["?"])
        assert len(encoded) == 2
        a.putpixel((0, 0), (1, 2, 3))  # another image now
        asking.ask([[a]], ["?"])
        assert len(encoded) == 3
        asking.ask([[image] for image in some_images(ENCODED_IMAGES + 5)], ["?"] * (ENCODED_IMAGES + 5))
        assert len(asking._urls) == ENCODED_IMAGES
    urls = [[part["image_url"]["url"] for part in r["messages"][0]["content"][:-1]] for r in server.requests]
    assert sorted(map(len, urls[:3])) == [1, 2, 2] and len({url for shown in urls[:3] for url in shown}) == 2


def test_images_go_as_they_are_asked_for() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with serving(lambda r: Answer("fine")) as server:
        for image_format in ("png", "jpeg"):
            endpoint(server.base_url, image_format=image_format).ask([[image]], ["?"])
    lossless, small = (
        Image.open(
            io.BytesIO(base64.b64decode(r["messages"][0]["content"][0]["image_url"]["url"].split(",")[1]))
        )
        for r in server.requests
    )
    assert lossless.format == "PNG" and np.array_equal(lossless, image)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    assert np.array_equal(small, Image.open(io.BytesIO(buffer.getvalue())))
    assert data_url(Image.new("RGBA", (3, 3))).startswith("data:image/jpeg")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', [{"a": 1}]),
        ('Sure: ```json\n{"a": {"b": [1]}}\n``` done', [{"a": {"b": [1]}}]),
        ('<think>maybe {"a": 0}? no {</think>{"a": 1}', [{"a": 1}]),
        ('so {"a": 0}</think>\n{"a": 1}', [{"a": 1}]),
        ('{"a": 1}<think>and now {"a": 2}', [{"a": 1}]),
        ('I use {braces} and [brackets, then {"a": 1} {really}', [{"a": 1}]),
        ('{"a": 1} or {"a": 2}', [{"a": 1}, {"a": 2}]),
        ('[{"a": 1}, {"b": 2}] {"c": "}{"}', [[{"a": 1}, {"b": 2}], {"c": "}{"}]),
        ('{"a": {"b": 1}', [{"b": 1}]),
        ("7/10", []),
        ("", []),
        ("{" * 100_000, []),
        ("[" * 100_000, []),
    ],
)
def test_json_is_found_wherever_it_is(text: str, expected: list[Any]) -> None:
    assert json_values(text) == expected


def test_reasoning_is_left_out() -> None:
    assert without_reasoning("<THINK>\na\n</THINK> b <thinking>c</thinking>d") == " b d"
    assert without_reasoning("plain <b>text</b>") == "plain <b>text</b>"


def test_an_image_that_cannot_be_sent_costs_only_its_own_sample() -> None:
    with serving(lambda r: Answer("fine")) as server:
        replies = endpoint(server.base_url).ask([some_images(1), [Image.new("RGB", (0, 0))]], ["a", "b"])
    assert replies[0].text == "fine" and replies[1].reason


def test_an_endpoint_that_is_down_is_found_out_once() -> None:
    url = nobody_there()
    waits: list[float] = []
    replies = endpoint(url, waits, retries=3, parallel=1).ask([[]] * 5, ["?"] * 5)
    assert all("cannot be reached" in (reply.reason or "") for reply in replies)
    assert len(waits) == 3  # not fifteen


@pytest.mark.parametrize("delay", [0.6])
def test_gives_up_on_a_slow_endpoint(delay: float) -> None:
    with serving(lambda request: Answer("late", delay=delay)) as server:
        (reply,) = endpoint(server.base_url, timeout=0.1, retries=1).ask([[]], ["?"])
    assert reply.reason and "within 0.1 s" in reply.reason and len(server.requests) == 2


def test_the_key_is_never_in_any_text(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    echo = {"1": Answer(KEY), "2": Answer(status=401, body=f"{'x' * 190} bad key {KEY}")}
    with caplog.at_level(logging.DEBUG), serving(lambda r: echo.get(asked(r), Answer("x"))) as server:
        asking = endpoint(server.base_url)
        replies = asking.ask([[]] * 3, ["0", "1", "2"])
    printed = capsys.readouterr()
    texts = [repr(replies), repr(asking), str(vars(asking)), caplog.text, printed.out, printed.err]
    assert not any(KEY[:8] in text for text in texts)
    assert "SOME_KEY" in (replies[2].reason or "")


@pytest.mark.parametrize("key", ["line\nbreak-key", "clé-with-accents-\u2603"])
def test_a_key_that_no_header_can_hold_is_not_repeated(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    with serving(lambda request: Answer("x")) as server:
        (reply,) = endpoint(server.base_url, retries=0).ask([[]], ["?"])
    assert reply.reason and "key" not in reply.reason and not server.requests


def test_without_a_key_none_is_sent_and_no_other_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("SOME_KEY")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving(lambda request: Answer("x")) as server:
        endpoint(server.base_url).ask([[]], ["?"])
    assert server.keys == [None]


def test_a_redirection_is_not_followed() -> None:
    with serving(lambda request: Answer("other")) as other:
        away = Answer(status=307, headers={"Location": other.base_url + "/chat/completions"})
        with serving(lambda request: away) as server:
            (reply,) = endpoint(server.base_url).ask([[]], ["?"])
    assert "HTTP 307" in (reply.reason or "") and not other.requests


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        f"http://me:{KEY}@host/v1",
        f"https://host/v1?key={KEY}",
        "http://[bad",
    ],
)
def test_refuses_an_address_that_holds_a_key_or_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url of judge must") as error:
        endpoint(url)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [{"retries": -1}, {"parallel": 0}, {"timeout": 0.0}, {"max_tokens": 0}, {"image_format": "gif"}],
)
def test_refuses_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        endpoint("http://host/v1", **wrong)


def test_nothing_asked_nothing_answered() -> None:
    assert endpoint(nobody_there()).ask([], []) == []


def test_a_rewriter_reads_lines_and_lists_without_the_reasoning() -> None:
    assert lines('<think>- maybe\n</think>1. a red fox\n- "a fox that is red"') == [
        "a red fox",
        "a fox that is red",
    ]
    assert lines('Here: ["a red fox", " a fox "]') == ["a red fox", "a fox"]
