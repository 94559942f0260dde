"""A test that a vision-language model sees, before it judges for hours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw

from tts_vision.errors import VerifierError

Yes: TypeAlias = Callable[[Sequence[Sequence[Image.Image]], Sequence[str]], Sequence[float]]
SIDE = 256
COLOURS = ("red", "blue")


def tells_colours(yes: Yes, owner: str) -> str:
    """Asks about a drawn red and a drawn blue circle whether they are red.

    Args:
        yes: The probability of yes, for each list of images and its question.
        owner: Name of the evaluator, for messages.

    Returns:
        What was tested, for the report.

    Raises:
        VerifierError: If yes is not likelier for the red circle than for the blue one, and likelier than no.
    """
    circles = [[_circle(colour)] for colour in COLOURS]
    red, blue = yes(circles, ["Is the circle red?"] * 2)
    if not red > max(blue, 0.5):
        raise VerifierError(
            f"The judge of {owner} must say that a drawn red circle is red and a blue one is not, but gives "
            f"yes {red:.3f} and {blue:.3f}; give the checkpoint of a trained vision-language model."
        )
    return f"a red circle is red with {red:.3f}, a blue one with {blue:.3f}"


def _circle(colour: str) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).ellipse((SIDE // 4, SIDE // 4, 3 * SIDE // 4, 3 * SIDE // 4), fill=colour)
    return image
