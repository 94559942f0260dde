"""Language models that answer by a JSON schema, on this machine or behind an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from PIL import Image
from pydantic import BaseModel, ValidationError

from tts_vision.chat import ChatEndpoint, Question, Reply
from tts_vision.verifiers._vlm import VisionLanguageModel

AGAIN = "That answer cannot be used: {error}. Answer with nothing but the JSON object that was asked for."

Answer = TypeVar("Answer", bound=BaseModel)


class AsksModel:
    """A verifier that asks a language model, on this machine or behind an endpoint.

    Args:
        checkpoint: Folder or hub id of any transformers image-text-to-text model with a chat template.
        base_url: OpenAI-compatible endpoint, such as ``http://localhost:8000/v1``, to ask instead.
        model: Name of the model at `base_url`.
        key_variable: Environment variable with the key of `base_url`; sent there if it is set.
        structured: Whether the endpoint is told the JSON schema of the answer; not all support it.
        temperature: Temperature of sampling at the endpoint; None leaves it to the server.
        timeout: Seconds until an attempt at the endpoint is given up.
        retries: Further attempts at the endpoint after a failure that may pass.
        parallel: Requests to the endpoint under way at once.
        cache: Folder for answers, which are not asked for again; none by default.
        max_new_tokens: Longest answer of a model on this machine, in tokens.
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

    An answer that does not follow the schema is asked for once more, with the error; a failed request is not
    repeated.

    Args:
        model: The model or endpoint.
        images: Those of each question; may be none.
        questions: Each must describe the wanted JSON object.
        kind: Schema of an answer.
        called: Name of the schema in reasons, one word.
        structured: Whether an endpoint is told the schema; not all support it.
        max_new_tokens: Longest answer of a model on this machine, in tokens.
    """

    def replies(shown: Sequence[Sequence[Image.Image]], asked: Sequence[Question]) -> list[Reply]:
        if isinstance(model, ChatEndpoint):
            schema = kind.model_json_schema() if structured else None
            return model.ask(shown, asked, schema=schema, schema_name=called)
        return [Reply(text) for text in model.generate(shown, asked, max_new_tokens=max_new_tokens)]

    first = replies(images, list[Question](questions))
    answers = [reply.reason or parsed(object_in(reply.text), kind, called) for reply in first]
    wrong = [i for i, answer in enumerate(answers) if isinstance(answer, str) and not first[i].reason]
    dialogues = [[questions[i], first[i].text, AGAIN.replace("{error}", str(answers[i]))] for i in wrong]
    for i, reply in zip(wrong, replies([images[i] for i in wrong], dialogues)):
        answer = reply.reason or parsed(object_in(reply.text), kind, called)
        told = " ".join(reply.text.split())[:80]
        answers[i] = f"{answer}; it said {told!r}" if isinstance(answer, str) and told else answer
    return answers


def object_in(text: str) -> str:
    """The JSON object in an answer, which may be in a code fence or after some words."""
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def parsed(answer: Any, kind: type[Answer], called: str) -> Answer | str:
    """The answer from JSON text or from the cache; else its error."""
    try:
        return kind.model_validate_json(answer) if isinstance(answer, str) else kind.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"the answer does not follow the {called}: {where + ': ' if where else ''}{first['msg']}"
