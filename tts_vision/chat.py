"""Language models behind an OpenAI-compatible chat-completions endpoint.

A question that gets no answer costs only its own sample: its reply has no text and the reason. The key is
read from the environment when a request is sent; it is never stored, and is removed from the server's
messages. An option that the server refuses by name, such as ``response_format``, is left out from then on.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import re
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.trust import check_allowed

Question: TypeAlias = str | Sequence[str]
"""A question of the user, or a dialogue: turns of user and assistant in turn, the user's first and last."""

ImageFormat: TypeAlias = Literal["jpeg", "png"]

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
LONGEST_WAIT = 30.0
LARGEST_BODY = 16 * 2**20
LONGEST_ANSWER = 2048
DEFAULT_KEY = "OPENAI_API_KEY"
JPEG_QUALITY = 95
ENCODED_IMAGES = 64
"""Encoded images that an endpoint remembers."""

MOST_FAILURES = 1000
"""Places at which a JSON value may fail to begin before the search for one is given up."""
_OPENING = re.compile(r"[{\[]")

# how servers call an option when they refuse it
OPTIONS = {
    "response_format": r"response[ _]format|json_schema|guided_json|structured[ _]outputs?",
    "temperature": r"temperature",
    "max_tokens": r"max_tokens",
    "max_completion_tokens": r"max_completion_tokens",
}


@dataclass(frozen=True)
class Reply:
    """The reply of an endpoint.

    Attributes:
        text: The answer; empty if there is none.
        reason: Why there is none.
        cut: Whether the answer ended at the limit of its length.
    """

    text: str = ""
    reason: str | None = None
    cut: bool = False


class _Failure(Exception):
    """A request without an answer; the message is the reason.

    Attributes:
        again: Whether to try once more.
        down: Whether there was no server at all.
        wait: Seconds that the server asks to wait.
        refused: Names of the options that the server refuses.
    """

    def __init__(
        self,
        reason: str,
        *,
        again: bool = False,
        down: bool = False,
        wait: float = 0.0,
        refused: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(reason)
        self.again, self.down, self.wait, self.refused = again, down, wait, refused


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
        max_tokens: Longest answer, in tokens; None leaves it to the server.
        image_format: How images are sent: ``jpeg`` (quality 95, full colour resolution) or ``png``.
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
        key_variable: str = DEFAULT_KEY,
        timeout: float = 60.0,
        retries: int = 4,
        parallel: int = 4,
        temperature: float | None = 0.0,
        max_tokens: int | None = LONGEST_ANSWER,
        image_format: ImageFormat = "jpeg",
        backoff: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] | None = None,
    ) -> None:
        self.base_url = _checked_url(base_url, owner)
        check_allowed(base_url, "ask")
        if key_variable != DEFAULT_KEY:
            check_allowed(key_variable, "send the content of the environment variable")
        if not model:
            raise ConfigError(f"{owner} needs the name of a model at {base_url}; set model.")
        for name, value, least in (("retries", retries, 0), ("parallel", parallel, 1)):
            if value < least:
                raise ConfigError(f"{name} of {owner} must be at least {least} but got {value}; raise it.")
        if max_tokens is not None and max_tokens < 1:
            raise ConfigError(f"max_tokens of {owner} must be at least 1 but got {max_tokens}; raise it.")
        if image_format not in {"jpeg", "png"}:
            raise ConfigError(f"image_format of {owner} must be jpeg or png but got {image_format!r}.")
        if not timeout > 0:
            raise ConfigError(f"timeout of {owner} must be positive but got {timeout}; raise it.")
        self.model = model
        self.owner = owner
        self.key_variable = key_variable
        self.timeout = timeout
        self.retries = retries
        self.parallel = parallel
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.image_format: ImageFormat = image_format
        self.backoff = backoff
        self.refused: frozenset[str] = frozenset()
        self._sleep = sleep
        self._jitter = jitter or random.Random().random
        self._urls: OrderedDict[str, str] = OrderedDict()

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
        max_tokens: int | None = LONGEST_ANSWER,
        image_format: ImageFormat = "jpeg",
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
                max_tokens=max_tokens,
                image_format=image_format,
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
        options: dict[str, Any] = {}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.max_tokens is not None:
            options["max_tokens"] = self.max_tokens
            options["max_completion_tokens"] = self.max_tokens  # the newer name, for servers that want it
        if schema is not None:
            wanted = {"name": schema_name, "strict": True, "schema": dict(schema)}
            options["response_format"] = {"type": "json_schema", "json_schema": wanted}

        def answer(shown: Sequence[str | Exception], question: Question) -> Reply:
            try:
                for url in shown:
                    if isinstance(url, Exception):
                        raise _Failure(f"an image cannot be sent: {type(url).__name__}: {url}") from url
                urls = [url for url in shown if isinstance(url, str)]
                body = {"model": self.model, "messages": _messages(urls, question)}
                reply = self._persist(body, options, down)
                return Reply(self._hidden(reply.text), reply.reason, reply.cut)
            except _Failure as failure:
                return Reply(reason=self._hidden(str(failure)))
            except Exception as error:  # of one sample; the message may hold the key
                return Reply(reason=f"asking {self.base_url} failed with {type(error).__name__}")

        with ThreadPoolExecutor(max_workers=self.parallel) as threads:
            return list(threads.map(answer, self._encoded(images, threads), questions))

    def _encoded(
        self, images: Sequence[Sequence[Image.Image]], threads: ThreadPoolExecutor
    ) -> list[list[str | Exception]]:
        """The images as data URLs, each encoded once; the error in the place of one that cannot be."""

        def attempt(work: Callable[[Image.Image], str], image: Image.Image) -> str | Exception:
            try:
                return work(image)
            except Exception as error:  # of any codec; it costs only the questions that show this image
                return error

        by_id = {id(image): image for shown in images for image in shown}
        contents = dict(zip(by_id, threads.map(partial(attempt, _digest), by_id.values()), strict=True))
        new = {contents[key]: image for key, image in by_id.items() if contents[key] not in self._urls}
        encode = partial(data_url, image_format=self.image_format)
        encoded = dict(zip(new, threads.map(partial(attempt, encode), new.values()), strict=True))
        known = {key: encoded.get(content) or self._urls[str(content)] for key, content in contents.items()}
        for key, url in known.items():
            if isinstance(url, str):
                self._urls[str(contents[key])] = url
                self._urls.move_to_end(str(contents[key]))
        while len(self._urls) > ENCODED_IMAGES:
            self._urls.popitem(last=False)
        return [[known[id(image)] for image in shown] for shown in images]

    def _persist(self, body: Mapping[str, Any], options: Mapping[str, Any], down: threading.Event) -> Reply:
        """The answer after as many attempts as it takes, with exponential back-off between them.

        A request whose options are refused is sent again without them, which is no attempt of its own.
        """
        refused, attempt = self.refused, 0
        while True:
            if down.is_set():  # other questions found it down
                raise _Failure(self._unreachable)
            sent = {name: value for name, value in options.items() if name not in refused}
            if "max_tokens" in sent:
                sent.pop("max_completion_tokens", None)
            try:
                reply = self._attempt({**body, **sent})
                self._remember(refused)
                return reply
            except _Failure as failure:
                if new := failure.refused & sent.keys():
                    refused |= new
                    continue
                if not failure.again or attempt == self.retries:
                    if failure.down:
                        down.set()
                    raise
                wait = min(LONGEST_WAIT, self.backoff * 2**attempt) * (1 + self._jitter()) / 2
                self._sleep(max(wait, min(failure.wait, LONGEST_WAIT)))
                attempt += 1

    def _remember(self, refused: frozenset[str]) -> None:
        """Keeps the options without which a request was answered, and says so once."""
        if new := refused - self.refused:
            self.refused |= new
            warnings.warn(
                f"{self.base_url} refuses {' and '.join(sorted(new))}; {self.owner} asks it without from now "
                "on.",
                stacklevel=2,
            )

    def _attempt(self, body: Mapping[str, Any]) -> Reply:
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
            whole = " ".join(content.decode("utf-8", "replace").split())
            said = self._hidden(whole)[:200]
            named = {name for name, pattern in OPTIONS.items() if re.search(rf"\b(?:{pattern})\b", whole)}
            hint = f"; put a key into {self.key_variable}" if status in {401, 403} else ""
            raise _Failure(
                f"{self.base_url} answered HTTP {status}: {said or 'nothing'}{hint}",
                again=status in AGAIN,
                wait=float(wait) if wait.isdigit() else 0.0,
                refused=frozenset(named) if status in {400, 422} else frozenset(),
            )
        return _reply(content, self.base_url)

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


class EndpointUser:
    """Asks a model behind an OpenAI-compatible endpoint, whose address and sampling are parameters.

    Args:
        base_url: Where it is, such as ``http://localhost:8000/v1``.
        model: Its name there.
        key_variable: Environment variable with the key of `base_url`; sent there if it is set.
        temperature: Of the endpoint's sampling; none leaves it to the server.
        timeout: Seconds until an attempt is given up.
        retries: Further attempts after a failure that may pass.
        max_tokens: Longest answer, in tokens; none leaves it to the server.
    """

    @property
    def owner(self) -> str:
        """Its name in messages."""
        raise NotImplementedError

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float | None = 0.7,
        timeout: float = 60.0,
        retries: int = 4,
        max_tokens: int | None = LONGEST_ANSWER,
    ) -> None:
        self._endpoint = ChatEndpoint(
            base_url,
            model,
            owner=self.owner,
            key_variable=key_variable,
            temperature=temperature,
            timeout=timeout,
            retries=retries,
            max_tokens=max_tokens,
        )


def data_url(image: Image.Image, image_format: ImageFormat = "jpeg") -> str:
    """The image in a ``data:`` URL, as JPEG of quality 95 with full colour resolution, or as PNG."""
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG")
    else:
        plain = image if image.mode in {"RGB", "L"} else image.convert("RGB")
        plain.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _digest(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _messages(urls: Sequence[str], question: Question) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for i, text in enumerate(turns(question)):
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in ([] if i else urls)]
        content = text if i % 2 else [*shown, {"type": "text", "text": text}]
        messages.append({"role": "assistant" if i % 2 else "user", "content": content})
    return messages


def _reply(content: bytes, base_url: str) -> Reply:
    """The answer in the body of a chat completion."""
    try:
        body = json.loads(content)
        if isinstance(body, dict) and body.get("error") and not body.get("choices"):
            error = body["error"]
            said = error.get("message") if isinstance(error, dict) else error
            code = error.get("code") if isinstance(error, dict) else None
            raise _Failure(f"{base_url} answered with an error: {str(said)[:200]}", again=code in AGAIN)
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _Failure(f"{base_url} answered with something that is no chat completion") from error
    if isinstance(text, list):  # some servers answer with a list of parts, as questions have
        parts = [part.get("text") if isinstance(part, dict) else part for part in text]
        text = "".join(part for part in parts if isinstance(part, str))
    cut = choice.get("finish_reason") == "length"
    if not isinstance(text, str) or not text.strip():
        if refusal := message.get("refusal"):
            raise _Failure(f"the model refused: {refusal}")
        if cut:
            raise _Failure("the model answered nothing before its answer reached the limit; raise max_tokens")
        raise _Failure("the model answered nothing", again=True)
    return Reply(text, cut=cut)


def without_reasoning(answer: str) -> str:
    """An answer without the reasoning that some models write before it, in ``<think>`` tags.

    Some servers leave out the opening tag. A block that is never closed hides the rest.
    """
    visible = re.sub(r"<(think|thinking|reasoning)>.*?</\1>", "", answer, flags=re.DOTALL | re.IGNORECASE)
    visible = re.split(r"</(?:think|thinking|reasoning)>", visible, flags=re.IGNORECASE)[-1]
    return re.split(r"<(?:think|thinking|reasoning)>", visible, flags=re.IGNORECASE)[0]


def json_values(answer: str) -> list[Any]:
    """The JSON objects and lists in an answer, in order, wherever they begin; reasoning is left out.

    Braces that begin no JSON are skipped, so that prose and code fences do no harm. Objects within others
    are parts of these.
    """
    return list(_json_values(without_reasoning(answer)))


def _json_values(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    at, failures = 0, 0
    while failures < MOST_FAILURES and (start := _OPENING.search(text, at)):
        try:
            value, at = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            at, failures = start.end(), failures + 1
            continue
        yield value


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
