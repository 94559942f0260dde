"""Draws the diagrams of the concepts page: `python docs/images/draw.py` writes the SVG files beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

INK, GREY, LINE = "#1f2933", "#5f6b76", "#9aa5b1"
BLUE, GREEN, ORANGE, PLAIN = "#dbe9f6", "#dff0df", "#fbe8d3", "#ffffff"


class Drawing:
    """An SVG drawing on a white ground, built up element by element."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, *, size: int = 14, anchor: str = "middle", colour: str = INK
    ) -> None:
        """Words whose baseline is at `y`."""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">'
            f"{escape(words)}</text>"
        )

    def box(self, x: float, y: float, w: float, h: float, words: str = "", fill: str = PLAIN) -> None:
        """A box with words in its middle, one line for each part between line breaks."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4" fill="{fill}" stroke="{LINE}"/>'
        )
        lines = words.split("\n")
        for i, line in enumerate(lines):
            self.text(x + w / 2, y + h / 2 + 5 + 18 * (i - (len(lines) - 1) / 2), line)

    def arrow(
        self, x1: float, y1: float, x2: float, y2: float, words: str = "", *, dashed: bool = False
    ) -> None:
        """An arrow, with words above its middle."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{INK}"{dash} '
            'marker-end="url(#head)"/>'
        )
        if words:
            self.text((x1 + x2) / 2, min(y1, y2) + abs(y1 - y2) / 2 - 8, words, size=13, colour=GREY)

    def row(self, x: float, y: float, widths: Sequence[int], cells: Sequence[str], fill: str = PLAIN) -> None:
        """A row of a table."""
        for width, cell in zip(widths, cells):
            self.box(x, y, width, 30, cell, fill)
            x += width

    def head(self, x: float, y: float, widths: Sequence[int], cells: Sequence[str]) -> None:
        """The names of a table's columns."""
        for width, cell in zip(widths, cells):
            self.text(x + width / 2, y, cell, size=13, colour=GREY)
            x += width

    def svg(self) -> str:
        """The file."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img" font-family="sans-serif">',
                f"<title>{escape(self.title)}</title>",
                '<defs><marker id="head" markerWidth="9" markerHeight="7" refX="8" refY="3.5" orient="auto">'
                f'<path d="M0,0 L9,3.5 L0,7 z" fill="{INK}"/></marker></defs>',
                f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def particle() -> Drawing:
    """A state as a table whose rows are particles."""
    d = Drawing(720, 220, "A state is a table whose rows are particles")
    widths = [70, 190, 220, 160]
    d.text(40, 28, "State, step 5 of 13, seed 0", anchor="start")
    d.head(40, 58, widths, ["uid", "latents", "condition", "carry"])
    for i, (uid, fill) in enumerate([("0", BLUE), ("1", PLAIN), ("2", PLAIN), ("7", PLAIN)]):
        d.row(40, 68 + 30 * i, widths, [uid, "(C, H, W)", "two red circles", "solver history"], fill)
    d.text(40, 210, "one row: one particle", anchor="start", size=13, colour=GREY)
    return d


def step() -> Drawing:
    """A trajectory of steps, of a diffusion model and of an autoregressive one."""
    d = Drawing(720, 230, "A step is one decision of the generator")
    rows = [
        (40, "diffusion, flow", ["noise", "less noise", "less noise", "sample"], "one denoising step"),
        (145, "visual autoregressive", ["empty", "1 x 1", "2 x 2", "4 x 4"], "tokens of one scale"),
    ]
    for y, kind, states, words in rows:
        d.text(20, y - 12, kind, anchor="start", size=13, colour=GREY)
        for i, name in enumerate(states):
            d.box(20 + 190 * i, y, 100, 44, name, GREEN if i == 3 else BLUE)
            d.text(70 + 190 * i, y + 62, f"step {i}", size=13, colour=GREY)
            if i < 3:
                d.arrow(120 + 190 * i, y + 22, 208 + 190 * i, y + 22, "advance")
        d.text(700, y - 12, words, anchor="end", size=13, colour=GREY)
    return d


def preview() -> Drawing:
    """The estimate of the finished sample, decoded half-way."""
    d = Drawing(720, 220, "A preview decodes the estimate of the finished sample")
    for i, (name, fill) in enumerate([("step 0", BLUE), ("step 6", BLUE), ("step 13", GREEN)]):
        d.box(30 + 210 * i, 130, 110, 50, name, fill)
    d.arrow(140, 155, 238, 155, "6 steps")
    d.arrow(350, 155, 448, 155, "7 steps")
    d.arrow(295, 130, 295, 82)
    d.text(303, 112, "x0 estimate", anchor="start", size=13, colour=GREY)
    d.box(230, 30, 130, 50, "preview", ORANGE)
    d.arrow(360, 55, 458, 55, "verifier")
    d.text(465, 60, "score of the preview", anchor="start")
    d.arrow(560, 155, 638, 155, "verifier")
    d.text(645, 160, "score", anchor="start")
    return d


def fork() -> Drawing:
    """Selection with a repeated row."""
    d = Drawing(720, 230, "A fork is a copy that draws noise of its own from here on")
    d.text(20, 24, "select(state, [0, 0, 2])", anchor="start")
    for i in range(3):
        d.box(30, 45 + 55 * i, 120, 40, f"uid {i}", PLAIN if i == 1 else BLUE)
    d.text(90, 222, "step 5", size=13, colour=GREY)
    for i, (source, name) in enumerate([(0, "uid 0"), (0, "uid 3, from 0"), (2, "uid 2")]):
        d.arrow(150, 65 + 55 * source, 288, 65 + 55 * i)
        d.box(290, 45 + 55 * i, 130, 40, name, ORANGE if i == 1 else BLUE)
        d.arrow(420, 65 + 55 * i, 558, 65 + 55 * i, "noise of its uid")
        d.box(560, 45 + 55 * i, 130, 40, ["sample A", "sample B", "sample C"][i], GREEN)
    d.text(355, 222, "step 5", size=13, colour=GREY)
    d.text(625, 222, "step 13", size=13, colour=GREY)
    return d


def move() -> Drawing:
    """Children with part of their parent's randomness redone."""
    d = Drawing(720, 220, "A move makes children by redoing part of the parent's randomness")
    d.box(20, 85, 130, 50, "parent\nstep k", BLUE)
    kinds = [
        ("Blend, Neighbour: initial noise", "step 0"),
        ("StepNoise: noise of the last step", "step k"),
        ("TokenNoise: tokens of the last scale", "step k"),
        ("Renoise: fresh noise on the way back", "step j < k"),
    ]
    for i, (words, at) in enumerate(kinds):
        y = 20 + 50 * i
        d.arrow(150, 110, 238, y + 18)
        d.box(240, y, 320, 36, words, ORANGE)
        d.arrow(560, y + 18, 598, y + 18)
        d.box(600, y, 100, 36, at, BLUE)
    return d


def condition() -> Drawing:
    """Conditions of rows, and the prompt that the verifier reads."""
    d = Drawing(760, 250, "A condition belongs to a particle; the verifier judges by the user's prompt")
    widths = [60, 270]
    d.head(20, 28, widths, ["uid", "condition"])
    rows = ["two red circles", "two red circles", "two red circles, flat icons"]
    for i, text in enumerate(rows):
        d.row(20, 38 + 36 * i, widths, [str(i), text], ORANGE if i == 2 else BLUE)
        d.arrow(350, 53 + 36 * i, 438, 53 + 36 * i)
    d.box(440, 38, 110, 102, "generator", PLAIN)
    d.arrow(550, 89, 608, 89)
    d.box(610, 38, 110, 102, "samples", GREEN)
    d.arrow(665, 140, 665, 188)
    d.box(590, 190, 150, 40, "verifier", PLAIN)
    d.box(20, 190, 330, 40, "the user's prompt: two red circles", BLUE)
    d.arrow(350, 210, 588, 210, "score(state)")
    return d


def ledger() -> Drawing:
    """Operations that are charged before they run."""
    d = Drawing(760, 240, "The ledger charges an operation before it runs")
    operations = ["advance", "decode", "score", "advance"]
    for i, name in enumerate(operations):
        d.box(20, 20 + 50 * i, 120, 36, name, BLUE if i < 3 else PLAIN)
        d.arrow(140, 38 + 50 * i, 258, 38 + 50 * i, "charge", dashed=i == 3)
    d.box(260, 20, 180, 186, "ledger\n\nnfe 390 of 416\nverifier calls 15\nseconds by phase", ORANGE)
    for i, answer in enumerate(["runs", "runs", "runs", "refused: the search ends"]):
        d.arrow(440, 38 + 50 * i, 538, 38 + 50 * i, dashed=i == 3)
        d.text(546, 43 + 50 * i, answer, anchor="start")
    d.text(20, 230, "best sample so far: the result", anchor="start", size=13, colour=GREY)
    return d


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "particle": particle,
    "step": step,
    "preview": preview,
    "fork": fork,
    "move": move,
    "condition": condition,
    "ledger": ledger,
}


if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw().svg())
