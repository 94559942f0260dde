"""Samples of a token model that differ from the rejected one in the tokens that it was rejected for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tts_vision.context import SearchContext
from tts_vision.correcting import Begun, CannotCorrect, Corrector, Rejected
from tts_vision.errors import CapabilityError, ConfigError
from tts_vision.moves import Move
from tts_vision.reflections import REGIONS
from tts_vision.registry import register
from tts_vision.saliency import salient_regions
from tts_vision.sampler import Sampler
from tts_vision.types import Region


@register(
    "corrector", "remask", paper="MaskGIT (Chang et al. 2022) for the sampler; PARM++ (Guo et al. 2025)"
)
class RemaskCorrector(Corrector):
    """Tokens of the rejected sample that the reason points at are masked and drawn again; all others stay.

    The verifier says where: by the regions of its answer, or, if its reward has gradients, by the cells of
    the image where the reward by the prompt changes most. Where it says neither, fresh samples are drawn.

    Args:
        share: Share of the image that is masked, where gradients say which one.
        grow: Tokens around each region that are masked with it.
        steps: Share of the steps that draw the tokens again, more carefully and for more compute the larger.
    """

    name = "remask"

    def __init__(self, *, share: float = 0.25, grow: int = 0, steps: float = 0.5) -> None:
        for name, value in (("share", share), ("steps", steps)):
            if not 0 < value <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1 but got {value:g}; change it.")
        if grow < 0:
            raise ConfigError(f"grow must be at least 0 but got {grow}; raise it.")
        self.share, self.grow, self.steps = share, grow, steps

    def check(self, ctx: SearchContext) -> None:
        _remasking(ctx.sampler, [0], max(1, ctx.num_steps - 1))

    def correct(self, ctx: SearchContext, rejected: Rejected, n: int) -> Begun:
        own = rejected.context
        tokens = tokens_in(self._regions(own, rejected), _grid(own.sampler), self.grow)
        if not tokens:
            raise CannotCorrect("no part of the image is known to be wrong")
        back = max(1, min(own.num_steps - 1, round(own.num_steps * (1 - self.steps))))
        move = _remasking(own.sampler, tokens, back)
        return own, own.mutate(rejected.state, move, [0] * n)

    def _regions(self, ctx: SearchContext, rejected: Rejected) -> Sequence[Region]:
        verifier = ctx.verifier
        if rejected.regions or not verifier.differentiable:
            return rejected.regions
        expected = [(0.0, 0.0, 1.0, self.share)]
        found: list[Region] = ctx.ask(
            REGIONS,
            lambda: salient_regions(verifier, rejected.image, [ctx.prompt.text], share=self.share),
            cost={verifier.name: 1},
            expected=expected,
            about=rejected.state,
        )
        return found


def tokens_in(regions: Sequence[Region], grid: tuple[int, int], grow: int = 0) -> tuple[int, ...]:
    """The tokens whose middle lies in a region, and those around them, in rising order."""
    rows, columns = grid
    found: set[int] = set()
    for left, top, right, bottom in regions:
        inside_y = range(math.ceil(top * rows - 0.5), math.ceil(bottom * rows - 0.5))
        inside_x = range(math.ceil(left * columns - 0.5), math.ceil(right * columns - 0.5))
        if inside_y and inside_x:
            ys = range(max(0, inside_y[0] - grow), min(rows, inside_y[-1] + 1 + grow))
            xs = range(max(0, inside_x[0] - grow), min(columns, inside_x[-1] + 1 + grow))
            found |= {y * columns + x for y in ys for x in xs}
    return tuple(sorted(found))


def _grid(sampler: Sampler) -> tuple[int, int]:
    if sampler.grid is None:
        raise CapabilityError(
            f"Corrector 'remask' needs a model of image tokens on a grid but {sampler.name!r} has none; use "
            "corrector 'edit' or 'prompt'."
        )
    return sampler.grid


def _remasking(sampler: Sampler, tokens: Sequence[int], to_step: int) -> Move:
    _grid(sampler)
    move = sampler.remasking(tokens, to_step)
    if move is None:
        raise CapabilityError(
            f"Corrector 'remask' needs a masked-token model but {sampler.name!r} cannot draw chosen tokens "
            "again; use corrector 'edit' or 'prompt'."
        )
    return move
