import base64
import io
import logging
from typing import Any

import numpy as np
import pytest
from chat_server import Answer, asked, nobody_there, serving
from PIL import Image

from tts_vision.chat import ChatEndpoint
from tts_vision.errors import ConfigError

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
    assert request["response_format"]["json_schema"] == {"name": "answer", "strict": True, "schema": schema}
    assert [m["role"] for m in request["messages"]] == ["user", "assistant", "user"]
    *parts, text = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    assert request["messages"][1]["content"] == "A fox."
    for part, image in zip(parts, shown, strict=True):
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        assert np.array_equal(Image.open(io.BytesIO(base64.b64decode(data))), image)


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


@pytest.mark.parametrize("wrong", [{"retries": -1}, {"parallel": 0}, {"timeout": 0.0}])
def test_refuses_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        endpoint("http://host/v1", **wrong)


def test_nothing_asked_nothing_answered() -> None:
    assert endpoint(nobody_there()).ask([], []) == []
