"""Critics: vision-language models behind an endpoint that say why samples were rejected."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from tts_vision.chat import EndpointUser, without_reasoning
from tts_vision.config import Spec
from tts_vision.errors import ConfigError
from tts_vision.parameters import validate
from tts_vision.types import Score

VERIFIER = "verifier"
"""Stands for the verifier of the search, whose reasons are those of its scores."""

REASON = (
    'An image generator was to draw: "{prompt}". This image was rejected{evaluation}. Say in one or two '
    "short sentences what has to change so that the image shows exactly what was asked for: name objects, "
    "numbers, colours and positions. Write nothing else."
)
PARTS = (
    'An image generator was to draw: "{prompt}". These {n} images are its best attempts, in order. No single '
    "one is right in all respects. Say in a few short sentences which part of which image is right, and "
    "describe the one image that joins these parts and shows exactly what was asked for. Write only this "
    "description."
)


class ChatCritic(EndpointUser):
    """A vision-language model behind an OpenAI-compatible endpoint."""

    name = "critic"

    @property
    def owner(self) -> str:
        return "critic 'chat'"

    def reasons(self, prompt: str, images: Sequence[Image.Image], scores: Sequence[Score]) -> list[str]:
        """What has to change in each image, in order; empty where the endpoint gave no answer."""
        questions = [
            REASON.replace("{prompt}", prompt).replace("{evaluation}", _evaluation(score)) for score in scores
        ]
        replies = self._endpoint.ask([[image] for image in images], questions)
        return [_line(reply.text) for reply in replies]

    def best_parts(self, prompt: str, images: Sequence[Image.Image]) -> str:
        """The image that joins the best parts of others, in words; empty where there is no answer."""
        question = PARTS.replace("{prompt}", prompt).replace("{n}", str(len(images)))
        (reply,) = self._endpoint.ask([list(images)], [question])
        return _line(reply.text)


def load_critic(text: str) -> ChatCritic | None:
    """The critic that a spec such as ``chat:base_url=URL,model=NAME`` names; None for ``verifier``.

    Raises:
        ConfigError: If it is neither.
    """
    spec = Spec.parse(text)
    if str(spec) == VERIFIER:
        return None
    if spec.name != "chat" or spec.members:
        raise ConfigError(
            f"A critic must be {VERIFIER!r} or 'chat:base_url=URL,model=NAME' but got {text!r}; change it."
        )
    return ChatCritic(**validate(ChatCritic, spec.params, "critic 'chat'"))


def _evaluation(score: Score) -> str:
    return f": {score.reason}" if score.reason else ""


def _line(answer: str) -> str:
    return " ".join(without_reasoning(answer).split())
