"""Text rendering: does an image show the text that its prompt quotes?"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers._quotes import quoted_texts

LONGEST_READ = 200
# one form of quotes and dashes, and of capital letters that look the same in Greek, Cyrillic and Latin
_MARKS = str.maketrans("‘’‚“”„–—‐‑−", "'''\"\"\"-----")
_ALIKE = str.maketrans("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧАВЕКМНОРСТХ", "ABEZHIKMNOPTYXABEKMHOPCTX")
# a word, a mark, or a letter of scripts without spaces
_TOKEN = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]|[^\W\u2e80-\u9fff\uf900-\ufaff]+|[^\w\s]|_")


@dataclass(frozen=True)
class Line:
    """A line of text that was read.

    Attributes:
        text: As it was read.
        confidence: Of the reader, in [0, 1].
    """

    text: str
    confidence: float


@dataclass(frozen=True)
class Match:
    """The passage of the read text that is closest to a quoted one.

    Attributes:
        text: The passage; empty if nothing was read.
        edits: Letters to insert, drop or replace.
        value: 1 - edits / length of the longer of both.
        confidence: The least of the lines it is from; 0 if there is none.
    """

    text: str = ""
    edits: int = 0
    value: float = 0.0
    confidence: float = 0.0


@register(
    "verifier",
    "ocr_score",
    paper="normalised edit distance as in AnyText (Tuo et al. 2023); PP-OCR (Du et al. 2020) by RapidOCR",
    notes={
        "licence": "Apache-2.0",
        "weights": "PP-OCRv6 small, in the wheel of rapidocr: pip install 'tts-vision[ocr]'",
    },
)
class OCRScore(BatchedVerifier):
    """How exactly an image shows the text that its prompt quotes: 1 - normalised edit distance, in [0, 1].

    Quoted text stands in straight or typographic quotes ("Open", “Open”, 'Open', „Open“, «Open», 「開」).
    For each quoted text the closest passage of consecutive words on the image counts; the value is the mean
    over the quoted texts. Spaces, line breaks and marks around the passage do not count, and quotes and
    dashes are alike in all their forms. By default case does not count either: a sign "Open" may say OPEN.
    The parts are the value, the edits and the reader's confidence for each quoted text; the reason gives the
    text that was read. An image is satisfied if all quoted texts are read without an edit.

    A prompt without quoted text is unscored, as is one in a script that the model does not know: the bundled
    one reads Latin, Greek, Chinese and Japanese. A letter that it knows only without its accent is compared
    without it. It runs on the CPU.

    Args:
        case: ``ignore`` or ``match``: whether "Open" and "OPEN" differ.
        recogniser: ONNX recognition model of PaddleOCR for another script, with its characters in its
            metadata; by default the one in the wheel.
        threads: Threads of the reader; by default those of torch.
    """

    name = "ocr_score"
    checks_demands = True

    def __init__(
        self,
        *,
        case: Literal["ignore", "match"] = "ignore",
        recogniser: Path | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(device="cpu")
        if case not in {"ignore", "match"}:
            raise ConfigError(f"case must be ignore or match but got {case!r}; change it.")
        if threads is not None and threads < 1:
            raise ConfigError(f"threads must be at least 1 but got {threads}; raise it.")
        self.case, self.recogniser, self.threads = case, recogniser, threads

    def _load(self) -> None:
        try:
            import onnxruntime  # noqa: F401
            from rapidocr import RapidOCR
        except ImportError as error:
            raise VerifierError(
                f"{self.name!r} needs the packages rapidocr and onnxruntime, which cannot be imported "
                f"({error}); pip install 'tts-vision[ocr]'."
            ) from error
        threads = self.threads or torch.get_num_threads()
        settings: dict[str, Any] = {
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        if self.recogniser is not None:
            settings["Rec.model_path"] = str(self.recogniser)
        try:
            self._reader: Any = RapidOCR(params=settings)
            # a first reading loads the models, which are otherwise loaded when they are needed
            self._reader(np.full((64, 64, 3), 255, np.uint8))
            self._letters = frozenset(self._reader._load_rec_model().postprocess_op.character)
        except Exception as error:  # of onnxruntime, omegaconf or the file
            raise VerifierError(
                f"The reader of {self.name!r} must load but: {type(error).__name__}: {error}; check "
                "recogniser and the installation of rapidocr."
            ) from error

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        return [self._read_and_score(sample, prompt) for sample, prompt in zip(samples, prompts, strict=True)]

    def _read_and_score(self, sample: Image.Image, prompt: Prompt) -> Score:
        wanted = quoted_texts(prompt.text)
        if not wanted:
            return Score.unscored('the prompt quotes no text that an image could show, as in: a sign "Open"')
        unknown = sorted({letter for text in wanted for letter in text if not self._known(letter)})
        if unknown:
            return Score.unscored(
                f"the reader knows no letters like {' '.join(unknown)}; give the recogniser of their script"
            )
        lines = self.read(sample)
        found = {text: best_match(self._readable(text), lines, case=self.case == "match") for text in wanted}
        parts: dict[str, float] = {}
        for text, match in found.items():
            parts |= {
                f'text "{text}"': match.value,
                f'edits "{text}"': float(match.edits),
                f'confidence "{text}"': match.confidence,
            }
        values = [match.value for match in found.values()]
        told = " / ".join(line.text for line in lines)[:LONGEST_READ]
        wrong = [
            f'"{text}" is closest to "{match.text}"'
            for text, match in found.items()
            if match.text and match.value < 1
        ]
        return Score(
            value=math.fsum(values) / len(values),
            parts=parts,
            reason="; ".join([f"read {told!r}" if lines else "read no text", *wrong]),
            satisfied=all(match.value == 1.0 for match in found.values()),
        )

    def read(self, sample: Image.Image) -> list[Line]:
        """The lines of text on an RGB image, from top to bottom and from left to right.

        Raises:
            UnusableSample: If the reader cannot take the image.
        """
        self.load()
        try:
            found = self._reader(np.asarray(sample)[:, :, ::-1])  # it takes the order of OpenCV
        except Exception as error:  # it refuses images that are too narrow with errors of its own
            raise UnusableSample(
                f"the reader cannot take an image of {sample.width}x{sample.height}: {type(error).__name__}"
            ) from error
        if found.txts is None:
            return []
        return [Line(text, float(score)) for text, score in zip(found.txts, found.scores)]

    def _readable(self, text: str) -> str:
        """A text with each letter that the reader does not know without its accent."""
        return "".join(
            letter if self._letters & {letter, letter.upper(), letter.lower()} else _bare(letter)
            for letter in unicodedata.normalize("NFKC", text)
        )

    def _known(self, letter: str) -> bool:
        """Whether the reader knows a letter, if only without its accent; marks do not matter."""
        forms = {form for plain in (letter, _bare(letter)) for form in (plain, plain.upper(), plain.lower())}
        return not letter.isalnum() or bool(self._letters & forms)


def _bare(letter: str) -> str:
    """A letter without its accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))


def comparable(text: str, *, case: bool) -> str:
    """The letters of a text that are compared: one form of each, without spaces.

    Args:
        text: The text.
        case: Whether case counts.
    """
    plain = re.sub(r"\s+", "", unicodedata.normalize("NFKC", text).translate(_MARKS))
    return (plain if case else plain.casefold().upper()).translate(_ALIKE)


def best_match(wanted: str, lines: Sequence[Line], *, case: bool = False) -> Match:
    """The passage of consecutive words that is closest to a quoted text; the first one of equals.

    Args:
        wanted: The quoted text.
        lines: What was read, in reading order.
        case: Whether case counts.
    """
    target = comparable(wanted, case=case)
    tokens = [(line, token) for line in lines for token in _TOKEN.finditer(line.text)]
    plain = [comparable(token.group(), case=case) for _, token in tokens]
    best = Match(edits=len(target))
    for i in range(len(tokens)):
        letters = ""
        for j in range(i, len(tokens)):
            letters += plain[j]
            if j > i and len(letters) > 2 * len(target):
                break
            longer = max(len(target), len(letters), 1)
            if 1 - abs(len(target) - len(letters)) / longer <= best.value:
                continue
            edits = edit_distance(target, letters)
            if 1 - edits / longer > best.value:
                passage = tokens[i : j + 1]
                confidence = min(line.confidence for line, _ in passage)
                best = Match(_written(passage), edits, 1 - edits / longer, confidence)
    return best


def _written(passage: Sequence[tuple[Line, re.Match[str]]]) -> str:
    """A passage as it stands on its lines."""
    spans: list[tuple[Line, int, int]] = []
    for line, token in passage:
        if spans and spans[-1][0] is line:
            spans[-1] = (line, spans[-1][1], token.end())
        else:
            spans.append((line, token.start(), token.end()))
    return " ".join(line.text[start:end] for line, start, end in spans)


def edit_distance(a: str, b: str) -> int:
    """Letters to insert, drop or replace to make one text the other (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(before + (letter != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]
