"""Language models behind an OpenAI-compatible chat-completions endpoint.

A question that gets no answer costs only its own sample: its reply has no text and the reason. The key is
read from the environment when a request is sent; it is never stored, and is removed from the server's
messages.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from PIL import Image

from tts_vision.errors import ConfigError

Question: TypeAlias = str | Sequence[str]
"""A question of the user, or a dialogue: turns of user and assistant in turn, the user's first and last."""

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LONGEST_WAIT = 30.0
LARGEST_BODY = 16 * 2**20


@dataclass(frozen=True)
class Reply:
    """The reply of an endpoint.

    Attributes:
        text: The answer; empty if there is none.
        reason: Why there is none.
    """

    text: str = ""
    reason: str | None = None


class _Failure(Exception):
    """A request without an answer; the message is the reason.

    Attributes:
        again: Whether to try once more.
        down: Whether there was no server at all.
        wait: Seconds that the server asks to wait.
    """

    def __init__(self, reason: str, *, again: bool = False, down: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.again, self.down, self.wait = again, down, wait


class ChatEndpoint:
    """A model behind an OpenAI-compatible chat-completions endpoint.

    Args:
        base_url: Its address, such as ``http://localhost:8000/v1``; must hold no user, password or query.
        model: Name of the model there.
        owner: Name of the plugin, for messages.
        key_variable: Environment variable that holds the key, which is sent to `base_url` only. Without
            such a variable no key is sent.
        timeout: Seconds until an attempt is given up.
        retries: Further attempts after a failure that may pass.
        parallel: Requests under way at once.
        temperature: Temperature of sampling; None leaves it to the server.
        backoff: Seconds before the second attempt; doubles with each.
        sleep: Waits for so many seconds; replaceable for tests.
        jitter: Draws from [0, 1) the random part of a wait, which keeps clients apart.

    Raises:
        ConfigError: If an argument cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        owner: str,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 4,
        parallel: int = 4,
        temperature: float | None = 0.0,
        backoff: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self.base_url = _checked_url(base_url, owner)
        if not model:
            raise ConfigError(f"{owner} needs the name of a model at {base_url}; set model.")
        for name, value, least in (("retries", retries, 0), ("parallel", parallel, 1)):
            if value < least:
                raise ConfigError(f"{name} of {owner} must be at least {least} but got {value}; raise it.")
        if not timeout > 0:
            raise ConfigError(f"timeout of {owner} must be positive but got {timeout}; raise it.")
        self.model = model
        self.owner = owner
        self.key_variable = key_variable
        self.timeout = timeout
        self.retries = retries
        self.parallel = parallel
        self.temperature = temperature
        self.backoff = backoff
        self._sleep = sleep
        self._jitter = jitter or random.Random().random

    @classmethod
    def named(
        cls,
        base_url: str | None,
        model: str | None,
        *,
        owner: str,
        key_variable: str,
        timeout: float,
        retries: int,
        parallel: int = 4,
        temperature: float | None = 0.0,
    ) -> ChatEndpoint | None:
        """The endpoint that a plugin's parameters name, as in the class; None if they name none.

        Raises:
            ConfigError: If they name a model but no endpoint, or an argument cannot be used.
        """
        if base_url is not None:
            return cls(
                base_url,
                model or "",
                owner=owner,
                key_variable=key_variable,
                timeout=timeout,
                retries=retries,
                parallel=parallel,
                temperature=temperature,
            )
        if model is not None:
            raise ConfigError(f"model is the name at an endpoint but got {model!r} without base_url; set it.")
        return None

    def load(self) -> None:
        """Does nothing: the model is on the server."""

    def ask(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[Question],
        *,
        schema: Mapping[str, Any] | None = None,
        schema_name: str = "answer",
    ) -> list[Reply]:
        """The answers, in the order of the questions.

        Args:
            images: Those of each question, shown with its first turn.
            questions: The questions about them.
            schema: JSON schema of an answer; the caller checks whether the answer follows it.
            schema_name: Its name.

        Returns:
            One reply per question.
        """
        down = threading.Event()

        def answer(shown: Sequence[Image.Image], question: Question) -> Reply:
            try:
                body: dict[str, Any] = {"model": self.model, "messages": _messages(shown, question)}
                if self.temperature is not None:
                    body["temperature"] = self.temperature
                if schema is not None:
                    wanted = {"name": schema_name, "strict": True, "schema": dict(schema)}
                    body["response_format"] = {"type": "json_schema", "json_schema": wanted}
                return Reply(text=self._hidden(self._persist(body, down)))
            except _Failure as failure:
                return Reply(reason=self._hidden(str(failure)))
            except Exception as error:  # of one sample; the message may hold the key
                return Reply(reason=f"asking {self.base_url} failed with {type(error).__name__}")

        with ThreadPoolExecutor(max_workers=self.parallel) as threads:
            return list(threads.map(answer, images, questions))

    def _persist(self, body: Mapping[str, Any], down: threading.Event) -> str:
        """The answer after as many attempts as it takes, with exponential back-off between them."""
        for attempt in range(self.retries + 1):
            if down.is_set():  # other questions found it down
                raise _Failure(self._unreachable)
            try:
                return self._attempt(body)
            except _Failure as failure:
                if not failure.again or attempt == self.retries:
                    if failure.down:
                        down.set()
                    raise
                wait = min(LONGEST_WAIT, self.backoff * 2**attempt) * (1 + self._jitter()) / 2
                self._sleep(max(wait, min(failure.wait, LONGEST_WAIT)))
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, body: Mapping[str, Any]) -> str:
        import requests
        from urllib3.exceptions import NewConnectionError

        ends = time.monotonic() + self.timeout
        late = f"{self.base_url} did not answer within {self.timeout:g} s; raise timeout"
        try:
            with requests.post(
                f"{self.base_url}/chat/completions",
                json=body,
                auth=self._authorise,
                timeout=self.timeout,
                allow_redirects=False,  # a key goes nowhere else
                stream=True,
            ) as response:
                content = b""
                for chunk in response.iter_content(2**16):
                    content += chunk
                    if time.monotonic() > ends:
                        raise _Failure(late, again=True)
                    if len(content) > LARGEST_BODY:
                        raise _Failure(f"{self.base_url} answered with more than {LARGEST_BODY} bytes")
                status, wait = response.status_code, response.headers.get("Retry-After", "")
        except requests.Timeout as error:
            raise _Failure(late, again=True) from error
        except requests.RequestException as error:
            cause = getattr(error.args[0] if error.args else None, "reason", None)
            if isinstance(cause, NewConnectionError):
                raise _Failure(self._unreachable, again=True, down=True) from error
            raise _Failure(f"{self.base_url} broke off ({type(error).__name__})", again=True) from error
        if status != 200:
            said = self._hidden(" ".join(content.decode("utf-8", "replace").split()))[:200]
            hint = f"; put a key into {self.key_variable}" if status in {401, 403} else ""
            raise _Failure(
                f"{self.base_url} answered HTTP {status}: {said or 'nothing'}{hint}",
                again=status in AGAIN,
                wait=float(wait) if wait.isdigit() else 0.0,
            )
        return _text(content, self.base_url)

    @property
    def _unreachable(self) -> str:
        return f"{self.base_url} cannot be reached; start it, or check base_url"

    def _authorise(self, request: Any) -> Any:
        """Sets the key on a request; given to `requests` so that it looks for no other credentials."""
        key = self._key()
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def _hidden(self, text: str) -> str:
        """The text without the key, which servers like to repeat."""
        key = self._key()
        return text.replace(key, "***") if key else text


def data_url(image: Image.Image) -> str:
    """The image as a PNG in a ``data:`` URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _messages(images: Sequence[Image.Image], question: Question) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for i, text in enumerate(turns(question)):
        shown = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in ([] if i else images)]
        content = text if i % 2 else [*shown, {"type": "text", "text": text}]
        messages.append({"role": "assistant" if i % 2 else "user", "content": content})
    return messages


def _text(content: bytes, base_url: str) -> str:
    """The answer in the body of a chat completion."""
    try:
        message = json.loads(content)["choices"][0]["message"]
        text = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Failure(f"{base_url} answered with something that is no chat completion") from error
    if not isinstance(text, str) or not text.strip():
        refusal = message.get("refusal")
        raise _Failure(f"the model refused: {refusal}" if refusal else "the model answered nothing")
    return text


def _checked_url(base_url: str, owner: str) -> str:
    # never repeated in a message: it may hold a secret
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"base_url of {owner} must be a web address such as http://localhost:8000/v1; change it."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"base_url of {owner} must hold neither user, password, query nor fragment, because it is "
            "shown in reports; put the key into an environment variable and name it in key_variable."
        )
    return base_url.rstrip("/")


def turns(question: Question) -> list[str]:
    """The turns of a question, the user's first.

    Raises:
        ValueError: If the last turn is not the user's.
    """
    asked = [question] if isinstance(question, str) else list(question)
    if len(asked) % 2 == 0:
        raise ValueError(f"A dialogue must end with the user's turn but has {len(asked)} turns.")
    return asked
