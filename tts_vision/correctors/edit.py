"""Samples that start from the rejected image."""

from __future__ import annotations

from tts_vision.condition import ORIGINAL, Condition
from tts_vision.context import SearchContext
from tts_vision.correcting import Begun, Corrector, Rejected, drawable
from tts_vision.correctors.prompt import PromptCorrector
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import Adopt
from tts_vision.registry import register
from tts_vision.types import State

OWN_STRENGTH = 0.6


@register("corrector", "edit", paper="SDEdit (Meng et al. 2022); ReflectionFlow (Zhuo et al. 2025)")
class EditCorrector(Corrector):
    """Samples that start from the rejected image, by the search's own generator or by an editor.

    The search's own generator goes back part of the way with fresh noise, and denoises for the prompt with
    the reason (SDEdit). An editor is any image-to-image or edit pipeline; it gets the image itself.

    Args:
        model: The editor, as ``--model`` takes it; by default the search's own generator.
        strength: Share of the way that is gone again, from 0 to 1; 0.6 for the search's own generator, and
            for an editor its own default. Not all editors have one.
        instruction: The prompt of the new samples.
        size: Width and height that the image is resized to before an editor gets it, such as ``1024x1024``;
            by default it goes in as it is. The samples have the size that the editor makes.
    """

    name = "edit"

    def __init__(
        self,
        *,
        model: str | None = None,
        strength: float | None = None,
        instruction: str = "{prompt}, {reason}",
        size: str | None = None,
    ) -> None:
        if strength is not None and not 0 < strength <= 1:
            raise ConfigError(f"strength must be above 0 and at most 1 but got {strength:g}; change it.")
        if size is not None and model is None:
            raise ConfigError("size is that of the image for an editor but none is named; set model.")
        self.model, self.strength = model, strength
        self.size = None if size is None else _size(size)
        self._words = PromptCorrector(template=instruction)

    @property
    def _editor(self) -> str | None:
        if self.model is None or self.strength is None:
            return self.model
        return f"{self.model}{'&' if '?' in self.model else '?'}strength={self.strength:g}"

    def check(self, ctx: SearchContext) -> None:
        if self._editor is None:
            ctx.sampler.requires("renoise", "corrector 'edit' without a model")
            return
        editor = ctx.using(self._editor)
        if "edits" not in editor.capabilities:
            raise CapabilityError(
                f"An editor must start from the image of its condition but {self.model!r} has "
                f"{sorted(editor.capabilities)}; name an image-to-image or edit pipeline."
            )

    def correct(self, ctx: SearchContext, rejected: Rejected, n: int) -> Begun:
        text = self._words.wording(ctx, rejected)
        if self._editor is None:
            return ctx, self._gone_back(ctx, rejected, text, n)
        editor = ctx.using(self._editor)
        image = rejected.image
        if self.size is not None and image.size != self.size:
            image = image.resize(self.size)
        with drawable(text):
            return editor, editor.init(n, Condition(text, images={"image": image}))

    def _gone_back(self, ctx: SearchContext, rejected: Rejected, text: str, n: int) -> State:
        finished = rejected.state
        if rejected.context.sampler is not ctx.sampler:  # an editor made it
            ctx.sampler.requires("adopt", "going back from the image of another generator")
            begin = ctx.init(1, Condition(text, images={ORIGINAL: rejected.image}))
            finished = ctx.mutate(begin, Adopt(ctx.num_steps))
        share = OWN_STRENGTH if self.strength is None else self.strength
        back = min(ctx.num_steps - 1, round(ctx.num_steps * (1 - share)))
        with drawable(text):
            return ctx.recondition(ctx.renoise(finished, back, [0] * n), text)


def _size(text: str) -> tuple[int, int]:
    """Width and height, as in ``1024x768``."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise ConfigError(f"size must be written WIDTHxHEIGHT but got {text!r}; 1024x1024 is one.")
    return int(sides[0]), int(sides[1])
