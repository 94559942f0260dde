"""Verifiers that say what a table has for each picture, to compose others from."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from tts_vision.types import Media, Modality, Prompt, Score

NAN = float("nan")
PROMPT = Prompt("two red circles")


def pictures(n: int) -> list[Media]:
    """Pictures that a `Table` tells apart: number 0 to `n` - 1."""
    return [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(n)]


class Table:
    """Says its value for the number of a picture; raises where that is "raise".

    Attributes:
        seen: The numbers it was asked about, call by call.
    """

    accepts: frozenset[Modality] = frozenset({"image"})

    def __init__(
        self, name: str, values: Sequence[float | str], accepts: frozenset[Modality] | None = None
    ) -> None:
        self.name, self.values = name, list(values)
        self.accepts = accepts or type(self).accepts
        self.seen: list[list[int]] = []
        self.loaded = 0

    def load(self) -> None:
        self.loaded += 1

    def score(self, media: Sequence[Media], prompts: Sequence[Prompt]) -> list[Score]:
        numbers = [m.getpixel((0, 0))[0] for m in media if isinstance(m, Image.Image)]  # type: ignore[index]
        self.seen.append(numbers)
        scores = []
        for number in numbers:
            value = self.values[number]
            if isinstance(value, str):
                raise RuntimeError(f"picture {number}")
            reason = f"blind to {number}" if value != value else None
            scores.append(Score(value=value, parts={"number": float(number)}, reason=reason))
        return scores
