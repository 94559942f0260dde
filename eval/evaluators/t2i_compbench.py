"""T2I-CompBench: attribute binding by BLIP-VQA, relations without space by CLIPScore."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Evaluator, Found, Item, Judged, Sample, Verdict, file_name
from tts_vision.eval.evaluators._blip_vqa import CHECKPOINT, BlipVQA
from tts_vision.eval.evaluators._by_verifier import absolute_verifier
from tts_vision.eval.evaluators._data import DataFile, Published, read_data
from tts_vision.eval.evaluators._images import images_of
from tts_vision.eval.evaluators._noun_phrases import MOST, PhraseRule, SpacyPhrases, phrases_by_rule
from tts_vision.registry import register
from tts_vision.types import Prompt

PUBLISHED = Published(
    "t2i_compbench",
    "https://github.com/Karine-Huang/T2I-CompBench, examples/dataset/color_val.txt and others",
    "MIT",
)
BINDING, NON_SPATIAL = ("color", "shape", "texture"), "non_spatial"
UNJUDGED = {
    "spatial": "UniDet",
    "3d_spatial": "UniDet and depth",
    "numeracy": "UniDet",
    "complex": "the mean of three judges, one of them UniDet",
}
CLIP = "clip_score:model=ViT-B-32-quickgelu;pretrained=openai"  # ";" as commas do not fit into a spec
_NUMBERED = re.compile(r"(.+)_(\d+)")


@register(
    "evaluator",
    "t2i_compbench",
    paper="T2I-CompBench++ (Huang et al. 2023, arXiv:2307.06350); BLIP (Li et al. 2022)",
    notes={"licence": "MIT (prompts, not included), BSD-3-Clause (BLIP)", "weights": CHECKPOINT},
)
class T2ICompBench(Evaluator):
    """T2I-CompBench: attribute binding (color, shape, texture) and non-spatial relations of one category.

    Attribute binding is BLIP-VQA: the product of P(yes) over the noun phrases of the prompt, each asked as
    "a red book?", rounded to four digits as released. Non-spatial relations are the cosine of CLIP ViT-B/32.
    The other categories need UniDet, which is not built here, and are refused.

    Args:
        data: A published list of one category, such as ``color_val.txt``.
        category: ``color``, ``shape``, ``texture`` or ``non_spatial``; by default from the file's name.
        phrases: ``rule`` takes prompts that are phrases joined by "and"; images of other prompts are not
            judged. ``spacy`` takes the noun chunks of spaCy's small English model, as released.
        checkpoint: Folder or hub id of BLIP.
        clip: The verifier of non-spatial relations, with ``;`` between its parameters.
        device: Device of BLIP; by default the accelerator, if there is one.
        batch_size: Questions computed at once.
    """

    name = "t2i_compbench"
    metric = "score"
    samples_per_item = 10

    def __init__(
        self,
        *,
        data: Path | None = None,
        category: str = "",
        phrases: PhraseRule = "rule",
        checkpoint: str = CHECKPOINT,
        clip: str = CLIP,
        device: str | None = None,
        batch_size: int = 8,
    ) -> None:
        self.data = read_data(data, PUBLISHED)
        self.category = _category(category, self.data)
        self.phrases = phrases
        self._phrases: Callable[[str], list[str] | None] = phrases_by_rule
        if phrases == "spacy" and self.category != NON_SPATIAL:
            self._phrases = SpacyPhrases()
        self._blip = BlipVQA(checkpoint, owner=self.name, device=device, batch_size=batch_size)
        self._clip_text = clip.replace(";", ",")
        self._clip = absolute_verifier(self._clip_text, self.name) if self.category == NON_SPATIAL else None
        lines = [line.strip() for line in self.data.text.splitlines() if line.strip()]
        self.duplicates = len(lines) - len(set(lines))
        self._items = [
            Item(f"{number:05d}", Prompt(text), (self.category,))
            for number, text in enumerate(dict.fromkeys(lines))
        ]

    @property
    def notes(self) -> list[str]:
        found = [self.data.note]
        if self.duplicates:
            found.append(f"{self.duplicates} repeated prompts of the file count once.")
        if self.category == NON_SPATIAL:
            return [*found, f"The judge is {self._clip_text}, divided by 100; negative cosines count as 0."]
        found.append(
            f"The judge is {self._blip.checkpoint} of transformers at its own image size; T2I-CompBench uses "
            "480 pixels, so figures are near published ones, not equal."
        )
        if self.phrases == "rule":
            beyond = sum(phrases_by_rule(item.prompt.text) is None for item in self._items)
            found.append(
                "Noun phrases are found by a rule instead of spaCy"
                + (
                    f"; {beyond} of {len(self._items)} prompts are beyond it and not judged."
                    if beyond
                    else "."
                )
            )
        return found

    @property
    def judge_name(self) -> str:
        if self.category == NON_SPATIAL:
            return f"t2i_compbench {self.data.sha256[:12]} by {self._clip_text}"
        return f"t2i_compbench {self.data.sha256[:12]} by {self._blip.checkpoint}, phrases by {self.phrases}"

    def items(self) -> list[Item]:
        return list(self._items)

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        looked = images_of(samples, self.name)
        images = {i: image for i, image in looked.items() if not isinstance(image, str)}
        work = self._by_clip if self._clip is not None else self._by_blip
        verdicts = work(images, samples)
        return [
            Verdict(reason=str(looked[i])) if i not in images else verdicts[i] for i in range(len(samples))
        ]

    def _by_clip(self, images: dict[int, Image.Image], samples: Sequence[Sample]) -> dict[int, Verdict]:
        assert self._clip is not None
        prompts = [samples[i].item.prompt for i in images]
        scores = dict(zip(images, self._clip.score(list(images.values()), prompts), strict=True))
        return {
            i: Verdict(reason=score.reason)
            if math.isnan(score.value)
            else Verdict({"score": score.value / 100})
            for i, score in scores.items()
        }

    def _by_blip(self, images: dict[int, Image.Image], samples: Sequence[Sample]) -> dict[int, Verdict]:
        phrases = {i: (self._phrases(samples[i].item.prompt.text) or [])[:MOST] for i in images}
        asked = [(i, phrase) for i, some in phrases.items() for phrase in some]
        yes = self._blip.yes_probabilities([images[i] for i, _ in asked], [f"{p}?" for _, p in asked])
        told: dict[int, dict[str, float]] = {i: {} for i in images}
        for (i, phrase), probability in zip(asked, yes, strict=True):
            told[i][phrase] = round(probability, 4)
        return {i: _verdict(phrases[i], told[i]) for i in images}

    def place(self, item: Item, index: int) -> str:
        return f"samples/{_stem(item, index)}"

    def read_layout(self, folder: Path) -> Found:
        """The samples ``samples/PROMPT_NUMBER.png``; those of a prompt count in the order of numbers."""
        at = folder / "samples" if (folder / "samples").is_dir() else folder
        by_name = {file_name(item.prompt.text): item for item in self._items}
        numbered: dict[str, list[tuple[int, Path]]] = {}
        complaints = []
        for file in sorted(at.iterdir()) if at.is_dir() else []:
            match = _NUMBERED.fullmatch(file.stem)
            if match is None or not file.is_file() or file.name.startswith("."):
                continue
            if match[1] not in by_name:
                complaints.append(f"{file.name}: no prompt of the data has this name")
                continue
            numbered.setdefault(match[1], []).append((int(match[2]), file))
        samples = [
            Sample(item, index, file)
            for name, item in by_name.items()
            for index, (_, file) in enumerate(sorted(numbered.get(name, [])))
        ]
        complaints += [
            f"{item.id}: no sample of {item.prompt.text!r:.80}"
            for name, item in by_name.items()
            if name not in numbered
        ]
        if not samples:
            raise ConfigError(
                f"A folder of {self.name} holds samples such as {self.place(self._items[0], 0)}.png but "
                f"{str(folder)!r} has none; check the folder."
            )
        return Found(samples, complaints)

    def write_results(self, folder: Path, judged: Sequence[Judged]) -> list[Path]:
        """Writes ``vqa_result.json`` as the released scripts do: a record per image, four digits."""
        known = [each for each in judged if "score" in each.verdict.values]
        order = sorted(known, key=lambda each: (each.sample.item.id, each.sample.index))
        records = [
            {"question_id": number, "answer": f"{each.verdict.values['score']:.4f}"}
            for number, each in enumerate(order)
        ]
        path = folder / "vqa_result.json"
        path.write_text(json.dumps(records), encoding="utf-8")
        return [path]


def _stem(item: Item, index: int) -> str:
    """The name of a sample: its number counts over all prompts, ten for each, as released."""
    return f"{file_name(item.prompt.text)}_{int(item.id) * T2ICompBench.samples_per_item + index:06d}"


def _category(given: str, data: DataFile) -> str:
    """The category that is given, or that the file is named by.

    Raises:
        ConfigError: If there is no judge for it.
    """
    stem = data.path.stem.lower()
    known = (NON_SPATIAL, *UNJUDGED, *BINDING)  # "3d_spatial" and "non_spatial" before "spatial"
    named = given or next(
        (each for each in sorted(known, key=len, reverse=True) if stem.startswith(each)), ""
    )
    if named in UNJUDGED:
        raise ConfigError(
            f"Categories of t2i_compbench must have a judge that is built here but {named!r} needs "
            f"{UNJUDGED[named]}; judge it by another verifier: 'prompts:data={data.path.name},judge=...'."
        )
    if named not in (*BINDING, NON_SPATIAL):
        raise ConfigError(
            f"category must be one of {', '.join((*BINDING, NON_SPATIAL))} but got {named!r} for "
            f"{data.path.name!r}; set it."
        )
    return named


def _verdict(phrases: list[str], told: dict[str, float]) -> Verdict:
    if not phrases:
        return Verdict(
            reason="the prompt is not made of noun phrases joined by 'and'; phrases=spacy takes any prompt"
        )
    if any(math.isnan(value) for value in told.values()):
        return Verdict(reason="the model answered NaN")
    # a phrase that stands twice counts twice
    return Verdict({"score": math.prod(told[phrase] for phrase in phrases)}, details={"phrases": told})
