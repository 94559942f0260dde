"""Language models that answer by a JSON schema, on this machine or behind an endpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from tts_vision.chat import ChatEndpoint, Question, Reply, json_values, without_reasoning
from tts_vision.verifiers._vlm import VisionLanguageModel

AGAIN = "That answer cannot be used: {error}. Answer with nothing but the JSON object that was asked for."

_MARK = re.compile(r"(?P<mark>\d+(?:\.\d+)?)\s*(?:(?:/|out of|of)\s*(?P<most>\d+(?:\.\d+)?))?")


class Schema(BaseModel):
    """Base class of answers: the schema that a server is told allows no other keys, reading ignores them."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": False})


Answer = TypeVar("Answer", bound=Schema)


class AsksModel:
    """A verifier that asks a language model, on this machine or behind an endpoint.

    Args:
        checkpoint: Folder or hub id of any transformers image-text-to-text model with a chat template.
        base_url: OpenAI-compatible endpoint, such as ``http://localhost:8000/v1``, to ask instead.
        model: Name of the model at `base_url`.
        key_variable: Environment variable with the key of `base_url`; sent there if it is set.
        structured: Whether the endpoint is told the JSON schema of the answer.
        image_format: How images are sent to the endpoint: ``jpeg`` (quality 95) or ``png``.
        temperature: Temperature of sampling at the endpoint; None leaves it to the server.
        timeout: Seconds until an attempt at the endpoint is given up.
        retries: Further attempts at the endpoint after a failure that may pass.
        parallel: Requests to the endpoint under way at once.
        cache: Folder for answers, which are not asked for again; none by default.
        max_new_tokens: Longest answer, in tokens.
        device: Device of a model on this machine; by default the accelerator, if there is one.
        dtype: Precision of its weights: float32, bfloat16 or float16.
    """


def ask(
    model: VisionLanguageModel | ChatEndpoint,
    images: Sequence[Sequence[Image.Image]],
    questions: Sequence[str],
    kind: type[Answer],
    *,
    called: str,
    structured: bool = True,
    max_new_tokens: int = 800,
) -> list[Answer | str]:
    """The answers, or the reasons why there are none, in the order of the questions.

    An answer that does not follow the schema is asked for once more, with the error; a request that failed
    for good is not repeated.

    Args:
        model: The model or endpoint.
        images: Those of each question; may be none.
        questions: Each must describe the wanted JSON object.
        kind: Schema of an answer.
        called: Name of the schema in reasons, one word.
        structured: Whether an endpoint is told the schema.
        max_new_tokens: Longest answer of a model on this machine, in tokens.
    """

    def replies(shown: Sequence[Sequence[Image.Image]], asked: Sequence[Question]) -> list[Reply]:
        if isinstance(model, ChatEndpoint):
            schema = kind.model_json_schema() if structured else None
            return model.ask(shown, asked, schema=schema, schema_name=called)
        return [Reply(text) for text in model.generate(shown, asked, max_new_tokens=max_new_tokens)]

    first = replies(images, list[Question](questions))
    answers = [read(reply, kind, called) for reply in first]
    wrong = [i for i, answer in enumerate(answers) if isinstance(answer, str) and not first[i].reason]
    dialogues = [
        [questions[i], without_reasoning(first[i].text).strip() or "...", AGAIN.format(error=answers[i])]
        for i in wrong
    ]
    for i, reply in zip(wrong, replies([images[i] for i in wrong], dialogues)):
        answer = read(reply, kind, called)
        told = " ".join(reply.text.split())[:80]
        answers[i] = f"{answer}; it said {told!r}" if isinstance(answer, str) and told else answer
    return answers


def read(reply: Reply, kind: type[Answer], called: str) -> Answer | str:
    """The answer in a reply; else the reason why there is none.

    It may be anywhere in the reply, in a list, the only entry of another object, or in parts over several
    objects. Of several answers the last one counts. A reply without any JSON is read as it stands, for
    schemas that take a word.
    """
    if reply.reason:
        return reply.reason
    values = json_values(reply.text)
    if not values:
        said = without_reasoning(reply.text).strip()
        answer = parsed(said, kind, called)
        return _told(f"the answer does not follow the {called}: it holds no JSON object", reply, answer)
    answers = [parsed(value, kind, called) for given in [_joined(values), *values] for value in _forms(given)]
    found = [answer for answer in answers if not isinstance(answer, str)]
    return found[-1] if found else _told(str(parsed(values[-1], kind, called)), reply)


def _told(reason: str, reply: Reply, answer: Answer | str = "") -> Answer | str:
    if not isinstance(answer, str):
        return answer
    return f"{reason}; it was cut at the limit of its length, max_new_tokens" if reply.cut else reason


def _joined(values: Sequence[Any]) -> dict[str, Any]:
    """The entries of all objects among JSON values as one object; the last one of a name counts."""
    return {key: part for value in values if isinstance(value, dict) for key, part in value.items()}


def _forms(value: Any) -> list[Any]:
    """The objects that a JSON value may stand for."""
    if isinstance(value, list):
        return [_joined(value), *(entry for entry in value if isinstance(entry, dict))]
    inner = list(value.values()) if isinstance(value, dict) and len(value) == 1 else []
    return [*(entry for entry in inner if isinstance(entry, dict)), value]


def parsed(answer: Any, kind: type[Answer], called: str) -> Answer | str:
    """The answer from JSON values; else its error."""
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"the answer does not follow the {called}: {where + ': ' if where else ''}{first['msg']}"


def out_of_ten(value: Any) -> Any:
    """A mark of 0 to 10 as models write it: 7, "7", "7/10", "70 of 100"; anything else stays as it is."""
    if not isinstance(value, str):
        return value
    match = _MARK.fullmatch(value.strip())
    if match is None:
        return value
    mark, most = float(match["mark"]), float(match["most"] or 10)
    return mark * 10 / most if most else value
