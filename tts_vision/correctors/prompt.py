"""Samples of a prompt that has the reason in it."""

from __future__ import annotations

from tts_vision.chat import LONGEST_ANSWER, ChatEndpoint
from tts_vision.context import SearchContext
from tts_vision.correcting import Begun, Corrector, Rejected, drawable
from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.rewriters.chat import lines

QUESTION = (
    'An image generator was to draw: "{prompt}". Its image was rejected: {reason}\nWrite one prompt that '
    "asks for exactly the same content, in words that make this mistake less likely. Add, drop or change no "
    "object, number, colour or position. Write the prompt and nothing else."
)


@register("corrector", "prompt", paper="ReflectionFlow (Zhuo et al. 2025)")
class PromptCorrector(Corrector):
    """Fresh samples of the prompt with the reason appended, or of a prompt that a language model writes.

    Without a reason, and where the language model gives no answer, the prompt stays as it is. Where the
    generator refuses the new prompt, for example because it is too long, fresh samples are drawn.

    Args:
        template: The prompt of the new samples, without a language model.
        base_url: OpenAI-compatible endpoint of a language model, such as ``http://localhost:8000/v1``.
        model: Its name there.
        key_variable: Environment variable with the key of `base_url`; sent there if it is set.
        temperature: Of the endpoint's sampling; none leaves it to the server.
        timeout: Seconds until an attempt is given up.
        retries: Further attempts after a failure that may pass.
        max_tokens: Longest answer, in tokens; none leaves it to the server.
    """

    name = "prompt"

    def __init__(
        self,
        *,
        template: str = "{prompt}, {reason}",
        base_url: str | None = None,
        model: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        temperature: float | None = 0.7,
        timeout: float = 60.0,
        retries: int = 4,
        max_tokens: int | None = LONGEST_ANSWER,
    ) -> None:
        if "{prompt}" not in template or "{reason}" not in template:
            raise ConfigError(
                f"template must contain {{prompt}} and {{reason}} but is {template!r}; put them in."
            )
        self.template = template
        self._endpoint = ChatEndpoint.named(
            base_url,
            model,
            owner="corrector 'prompt'",
            key_variable=key_variable,
            timeout=timeout,
            retries=retries,
            temperature=temperature,
            max_tokens=max_tokens,
        )

    def correct(self, ctx: SearchContext, rejected: Rejected, n: int) -> Begun:
        text = self.wording(ctx, rejected)
        with drawable(text):
            return ctx, ctx.init(n, text)

    def wording(self, ctx: SearchContext, rejected: Rejected) -> str:
        """The prompt with the reason in it."""
        if self._endpoint is None:
            filled = self.template.replace("{prompt}", rejected.prompt).replace("{reason}", rejected.reason)
            return filled if rejected.reason else rejected.prompt
        told = ctx.ask(
            "prompt_corrector",
            self._asked,
            rejected,
            cost={"prompt_corrector": 1},
            expected="",
            about=rejected.state,
        )
        return told or rejected.prompt

    def _asked(self, rejected: Rejected) -> str:
        assert self._endpoint is not None
        question = QUESTION.replace("{prompt}", rejected.prompt)
        question = question.replace("{reason}", rejected.reason or "it does not show what was asked for.")
        (reply,) = self._endpoint.ask([[]], [question])
        return next(iter(lines(reply.text)), "")
