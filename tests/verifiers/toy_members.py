"""Verifiers that return the values of a table, to compose others from."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from tts_vision.types import Media, Modality, Prompt, Score
from tts_vision.verifier import ALONE, Asked, Verifier

NAN = float("nan")
PROMPT = Prompt("two red circles")


def numbered(n: int) -> list[Media]:
    """Images that a `Table` tells apart: number 0 to `n` - 1."""
    return [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(n)]


class Table(Verifier):
    """Returns the value at the number of an image; raises where that is "raise".

    Attributes:
        seen: The numbers it was asked about, call by call.
        asked: The circumstances of each call.
    """

    def __init__(
        self,
        name: str,
        values: Sequence[float | str],
        accepts: frozenset[Modality] = frozenset({"image"}),
        *,
        satisfied: bool | None = None,
    ) -> None:
        self.name, self.values, self.accepts = name, list(values), accepts
        self.satisfied, self.checks_demands = satisfied, satisfied is not None
        self.seen: list[list[int]] = []
        self.asked: list[Asked] = []
        self.loaded = 0

    def load(self) -> None:
        self.loaded += 1

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt], asked: Asked = ALONE) -> list[Score]:
        numbers = [m.getpixel((0, 0))[0] for m in media if isinstance(m, Image.Image)]  # type: ignore[index]
        self.seen.append(numbers)
        self.asked.append(asked)
        scores = []
        for number in numbers:
            value = self.values[number]
            if isinstance(value, str):
                raise RuntimeError(f"image {number}")
            reason = f"blind to {number}" if value != value else None
            parts = {"number": float(number)}
            scores.append(Score(value=value, parts=parts, reason=reason, satisfied=self.satisfied))
        return scores
