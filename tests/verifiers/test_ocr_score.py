"""The OCR verifier on real weights: text drawn in several fonts, sizes and rotations, with wrong letters."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from samples import clips
from tts_vision import Prompt
from tts_vision.errors import ConfigError, VerifierError
from tts_vision.registry import lookup
from tts_vision.testing.contracts import VerifierContract
from tts_vision.types import Media, Score
from tts_vision.verifiers._quotes import quoted_texts
from tts_vision.verifiers.ocr_score import Line, OCRScore, best_match, comparable, edit_distance

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
OPEN = Prompt('a shop window with a sign that says "Open"')


@pytest.fixture(scope="session")
def ocr() -> OCRScore:
    for package in ("rapidocr", "onnxruntime"):
        pytest.importorskip(package, reason="needs the extra ocr: pip install 'tts-vision[ocr]'")
    return OCRScore(threads=1)


def drawn(
    *lines: str,
    font: str = "DejaVuSans",
    size: int = 48,
    turned: float = 0,
    ink: str = "black",
    paper: str = "white",
    noise: float = 0.0,
) -> Image.Image:
    """An image with lines of text in its middle."""
    image = Image.new("RGB", (420, 320), paper)
    pen, face = ImageDraw.Draw(image), ImageFont.truetype(str(FONTS / f"{font}.ttf"), size)
    for i, line in enumerate(lines):
        at = (210, 160 + (i - (len(lines) - 1) / 2) * 1.6 * size)
        pen.text(at, line, font=face, fill=ink, anchor="mm")
    if turned:
        image = image.rotate(turned, Image.Resampling.BICUBIC, fillcolor=paper)
    if noise:
        grain = np.random.default_rng(0).normal(0, noise, (320, 420, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
    return image


def scored(ocr: OCRScore, image: Image.Image, prompt: Prompt | str) -> Score:
    (score,) = ocr.score([image], [Prompt(prompt) if isinstance(prompt, str) else prompt])
    return score


class TestContract(VerifierContract):
    @pytest.fixture
    def verifier(self, ocr: OCRScore) -> OCRScore:
        return ocr

    @pytest.fixture
    def media(self) -> Sequence[Media]:
        return [drawn("OPEN"), drawn("OPNE"), drawn("")]

    @pytest.fixture
    def prompt(self) -> Prompt:
        return OPEN


# Real weights


@pytest.mark.parametrize(
    "font",
    ["DejaVuSans", "DejaVuSans-BoldOblique", "DejaVuSerif-Bold", "DejaVuSansMono", "STIXGeneral", "cmr10"],
)
def test_text_is_read_in_any_font(ocr: OCRScore, font: str) -> None:
    score = scored(ocr, drawn("Fresh Coffee", font=font), "a mug that reads 'Fresh Coffee'")
    assert (score.value, score.satisfied) == (1.0, True) and "Coffee" in (score.reason or "")
    assert score.parts['text "Fresh Coffee"'] == 1 and score.parts['edits "Fresh Coffee"'] == 0
    assert score.parts['confidence "Fresh Coffee"'] > 0.8


@pytest.mark.parametrize("size", [14, 24, 90])
def test_text_is_read_in_any_size(ocr: OCRScore, size: int) -> None:
    assert scored(ocr, drawn("OPEN", size=size), OPEN).value == 1


@pytest.mark.parametrize("turned", [-30, -10, 20, 90, 180, 270])
def test_text_is_read_when_it_is_turned(ocr: OCRScore, turned: float) -> None:
    assert scored(ocr, drawn("OPEN", turned=turned), OPEN).value == 1


@pytest.mark.parametrize(
    ("ink", "paper", "noise"), [("white", "black", 0), ("gold", "darkgreen", 20), ("navy", "orange", 40)]
)
def test_text_is_read_in_colour_and_noise(ocr: OCRScore, ink: str, paper: str, noise: float) -> None:
    assert scored(ocr, drawn("OPEN", ink=ink, paper=paper, noise=noise), OPEN).value == 1


@pytest.mark.parametrize(
    ("shown", "wanted", "edits"),
    [
        ("OPNE", "OPEN", 2),  # swapped letters
        ("COFEE", "COFFEE", 1),  # a missing letter
        ("COFFFEE", "COFFEE", 1),  # one too many
        ("GRAND OPENUNG", "GRAND OPENING", 1),  # a wrong letter
        ("BANK", "ZOO", 4),  # something else
    ],
)
def test_wrong_and_missing_letters_cost_their_share(
    ocr: OCRScore, shown: str, wanted: str, edits: int
) -> None:
    score = scored(ocr, drawn(shown), f'a sign "{wanted}"')
    letters = max(len(shown.replace(" ", "")), len(wanted.replace(" ", "")))
    assert score.value == pytest.approx(1 - edits / letters)
    assert score.satisfied is False and f"read '{shown}" in (score.reason or "")
    if score.value:
        assert f'"{wanted}" is closest to "{shown}"' in (score.reason or "")


def test_every_quoted_text_counts(ocr: OCRScore) -> None:
    prompt = "a menu that says “Soup” and “Bread”, next to it a sign 'Closed'"
    whole = scored(ocr, drawn("SOUP  BREAD", "CLOSED"), prompt)
    assert (whole.value, whole.satisfied) == (1.0, True)
    half = scored(ocr, drawn("SOUP", "CLOSET"), prompt)
    assert half.parts['text "Soup"'] == 1 and half.parts['text "Closed"'] == pytest.approx(5 / 6)
    assert half.value == pytest.approx((1 + half.parts['text "Bread"'] + 5 / 6) / 3)
    assert half.satisfied is False and 'is closest to "CLOSET"' in (half.reason or "")


def test_a_text_may_go_over_several_lines_and_stand_beside_others(ocr: OCRScore) -> None:
    image = drawn("the best", "Grand Opening", "today!", size=36)
    for wanted in ("Grand Opening", "best grand", "opening today", "today"):
        assert scored(ocr, image, f'a banner "{wanted}"').value == 1, wanted
    assert scored(ocr, image, 'a banner "open"').value == pytest.approx(4 / 7)  # no part of a word


def test_case_counts_if_it_is_asked_to(ocr: OCRScore) -> None:
    strict = OCRScore(case="match", threads=1)
    assert scored(strict, drawn("Open"), OPEN).value == 1
    assert scored(strict, drawn("OPEN"), OPEN).value == pytest.approx(1 / 4)
    assert scored(ocr, drawn("OPEN"), OPEN).value == 1


def test_greek_and_accents_are_read(ocr: OCRScore) -> None:
    assert scored(ocr, drawn("ΣΟΦΙΑ"), "a temple that says «Σοφία»").value == 1
    assert scored(ocr, drawn("Café Übel"), 'a sign "Café Übel"').value == 1
    assert scored(ocr, drawn("Cafe Ubel"), 'a sign "Café Übel"').value == pytest.approx(6 / 8)


def test_chinese_is_read(ocr: OCRScore) -> None:
    """Characters made of straight lines, since no font here has any."""
    image = Image.new("RGB", (420, 320), "white")
    pen = ImageDraw.Draw(image)

    def line(*ends: int) -> None:
        pen.line(ends, fill="black", width=9)

    for left in (80, 240):  # 田, then 中
        pen.rectangle((left, 110, left + 90, 200), outline="black", width=9)
        line(left + 45, 110 if left == 80 else 70, left + 45, 200 if left == 80 else 250)
    line(80, 155, 170, 155)
    assert [read.text for read in ocr.read(image)] == ["田中"]
    assert scored(ocr, image, "a seal that reads 「田中」").satisfied is True
    assert scored(ocr, image, "a seal that reads 『田口』").value == pytest.approx(1 / 2)


def test_an_image_without_text_scores_zero(ocr: OCRScore) -> None:
    score = scored(ocr, Image.new("RGB", (200, 200), "red"), OPEN)
    assert (score.value, score.satisfied, score.reason) == (0.0, False, "read no text")
    assert score.parts == {'text "Open"': 0.0, 'edits "Open"': 4.0, 'confidence "Open"': 0.0}


def test_a_prompt_that_quotes_nothing_is_unscored(ocr: OCRScore) -> None:
    score = scored(ocr, drawn("OPEN"), "a dog's bowl and the cats' toys")
    assert math.isnan(score.value) and score.satisfied is None
    assert "the prompt quotes no text" in (score.reason or "")


@pytest.mark.parametrize("wanted", ["Привет", "안녕", "مرحبا"])
def test_a_script_that_the_reader_does_not_know_is_told(ocr: OCRScore, wanted: str) -> None:
    score = scored(ocr, drawn(wanted), f'a sign "{wanted}"')
    assert math.isnan(score.value) and "knows no letters like" in (score.reason or "")
    assert wanted[1] in (score.reason or "") and "recogniser" in (score.reason or "")


def test_odd_samples_cost_only_themselves(ocr: OCRScore) -> None:
    odd: list[Media] = [
        drawn("OPEN"),
        clips(1)[0],
        Image.new("RGB", (1, 1)),
        Image.new("RGB", (4000, 3)),
        drawn("OPEN").convert("L"),
        drawn("OPEN").convert("RGBA"),
    ]
    found = ocr.score(odd, [OPEN] * len(odd))
    assert [score.value for score in found] == pytest.approx([1, math.nan, 0, math.nan, 1, 1], nan_ok=True)
    assert "frame_mean(ocr_score)" in (found[1].reason or "")
    assert "the reader cannot take an image of 4000x3" in (found[3].reason or "")
    assert ocr.score([], []) == []


# What counts


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "Open" and a sign “Closed”', ["Open", "Closed"]),
        ("it says 'don't stop' on the dogs' house", ["don't stop"]),
        ("it says ‘don’t stop’", ["don’t stop"]),
        ("ein Schild „Geöffnet“ und «Fermé» und « Ouvert »", ["Geöffnet", "Fermé", "Ouvert"]),
        ("看板「営業中」と『本日休業』", ["営業中", "本日休業"]),
        ('he says "Open," and "Open" again', ["Open"]),
        ('a 12" ruler beside a 5" nail', []),
        ("the dog's bowl and the cats' toys in the '90s", []),
        ('an empty "" and " "', []),
        ("a sign \"Say 'cheese'!\"", ["Say 'cheese'!"]),
        ('an open quote "never closed', []),
    ],
)
def test_quoted_texts_are_found(prompt: str, texts: list[str]) -> None:
    assert quoted_texts(prompt) == texts


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab", "ba", 2),
    ],
)
def test_the_edit_distance_is_levenshteins(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_what_does_not_count() -> None:
    assert comparable("Don’t — STOP", case=False) == comparable("don't-stop", case=False)
    assert comparable("ﬁnal Ⅳ", case=False) == "FINALIV"
    assert comparable("Straße", case=False) == "STRASSE"
    assert comparable("Open", case=True) != comparable("OPEN", case=True)
    assert comparable("ΑΒΕ", case=True) == "ABE"


@pytest.mark.parametrize(
    ("wanted", "lines", "text", "value"),
    [
        ("営業中", ["本日営業中です"], "営業中", 1.0),
        ("50% off", ["NOW", "50% OFF!"], "50% OFF", 1.0),
        ("hello world", ["helloworld"], "helloworld", 1.0),
        ("hello world", ["hello", "world"], "hello world", 1.0),
        ("don't", ["well don't!"], "don't", 1.0),
        ("open", ["opening"], "opening", 4 / 7),
        ("open", ["closed", "op en", "open"], "op en", 1.0),
        ("open", ["xyz"], "", 0.0),
        ("open", [], "", 0.0),
    ],
)
def test_the_closest_passage_counts(wanted: str, lines: list[str], text: str, value: float) -> None:
    match = best_match(wanted, [Line(line, 1 - i / 10) for i, line in enumerate(lines)])
    assert (match.text, match.value) == (text, pytest.approx(value))


def test_the_confidence_is_the_least_of_the_lines() -> None:
    assert best_match("a b", [Line("a", 0.9), Line("b", 0.6)]).confidence == 0.6


# Errors


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(
        VerifierError, match=r"needs the packages rapidocr and.*pip install 'tts-vision\[ocr\]'"
    ):
        OCRScore().load()


def test_a_recogniser_that_is_none_is_named(ocr: OCRScore, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(VerifierError, match=r"reader of 'ocr_score' must load but: .*check recogniser"):
        OCRScore(recogniser=tmp_path / "model.onnx").load()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"case": "upper"}, "case must be ignore or match"), ({"threads": 0}, "threads must be at least 1")],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OCRScore(**wrong)


def test_it_is_registered() -> None:
    assert lookup("verifier", "ocr_score").target is OCRScore and OCRScore.checks_demands
