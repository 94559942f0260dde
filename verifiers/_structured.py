"""Answers of language models that must follow a schema: asked for once more if they do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from PIL import Image
from pydantic import BaseModel, ValidationError

from tts_vision.verifiers._endpoint import ChatEndpoint, Reply
from tts_vision.verifiers._vlm import Question, VisionLanguageModel

AGAIN = "That answer cannot be used: {error}. Answer with nothing but the JSON object that was asked for."

Answer = TypeVar("Answer", bound=BaseModel)


def ask(
    model: VisionLanguageModel | ChatEndpoint,
    pictures: Sequence[Sequence[Image.Image]],
    questions: Sequence[str],
    kind: type[Answer],
    *,
    called: str,
    structured: bool = True,
    max_new_tokens: int = 800,
) -> list[Answer | str]:
    """The answers, or the reasons why there are none, in the order of the questions.

    What cannot be read is asked for once more, with what was wrong; what failed has been tried enough.

    Args:
        model: What is asked.
        pictures: Those of each question; may be none.
        questions: Each must say what JSON object is wanted.
        kind: Which answers must follow.
        called: What that is called in reasons, one word.
        structured: Whether an endpoint is told the schema; not all know how.
        max_new_tokens: Longest answer of a model on this machine.
    """

    def replies(shown: Sequence[Sequence[Image.Image]], asked: Sequence[Question]) -> list[Reply]:
        if isinstance(model, ChatEndpoint):
            schema = kind.model_json_schema() if structured else None
            return model.ask(shown, asked, schema=schema, schema_name=called)
        return [Reply(text) for text in model.generate(shown, asked, max_new_tokens=max_new_tokens)]

    first = replies(pictures, list[Question](questions))
    answers = [reply.reason or parsed(object_in(reply.text), kind, called) for reply in first]
    wrong = [i for i, answer in enumerate(answers) if isinstance(answer, str) and not first[i].reason]
    dialogues = [[questions[i], first[i].text, AGAIN.replace("{error}", str(answers[i]))] for i in wrong]
    for i, reply in zip(wrong, replies([pictures[i] for i in wrong], dialogues)):
        answer = reply.reason or parsed(object_in(reply.text), kind, called)
        told = " ".join(reply.text.split())[:80]
        answers[i] = f"{answer}; it said {told!r}" if isinstance(answer, str) and told else answer
    return answers


def object_in(text: str) -> str:
    """The JSON object in an answer, which may stand in a code fence or after some words."""
    start, end = text.find("{"), text.rfind("}")
    return text[start : end + 1] if 0 <= start < end else text


def parsed(answer: Any, kind: type[Answer], called: str) -> Answer | str:
    """The answer in JSON text or in what was kept; else what is wrong with it."""
    try:
        return kind.model_validate_json(answer) if isinstance(answer, str) else kind.model_validate(answer)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"the answer does not follow the {called}: {where + ': ' if where else ''}{first['msg']}"
