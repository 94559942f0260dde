"""GenEval 2: 800 prompts of graded difficulty, judged by questions with known answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tts_vision.eval.evaluator import Evaluator, Found, Item, Judged, Sample, Verdict, weighted_mean
from tts_vision.eval.evaluators._data import DataFile, Distinct, Published, json_lines, read_data, text_in
from tts_vision.eval.evaluators._image_map import read_image_map, write_image_map
from tts_vision.eval.evaluators._images import images_of
from tts_vision.eval.evaluators._self_test import tells_colours
from tts_vision.registry import register
from tts_vision.types import Prompt
from tts_vision.verifiers._soft_tifa import (
    CHECKPOINT,
    TEMPLATE,
    Answers,
    Atom,
    ask_atoms,
    atoms_from_list,
)
from tts_vision.verifiers._vlm import YES_SPELLINGS, VisionLanguageModel

PUBLISHED = Published(
    benchmark="geneval2",
    address="https://github.com/facebookresearch/GenEval2, geneval2_data.jsonl",
    licence="CC BY-NC 4.0, non-commercial",
    sha256="09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43",
)
SKILLS = ("object", "attribute", "count", "position", "verb")
VQA_SCORE = 'Does this image show "{prompt}"? Answer the question with Yes or No.'
SCORES, PROMPTS = "score_lists", "benchmark_data"


@register(
    "evaluator",
    "geneval2",
    paper="GenEval 2 (Kamath et al. 2025, arXiv:2512.16853); TIFA (Hu et al. 2023)",
    notes={
        "licence": "CC BY-NC 4.0 (data, not included); Apache-2.0 (default judge)",
        "weights": f"{CHECKPOINT}, or any image-text-to-text model of transformers",
    },
)
class GenEval2(Evaluator):
    """GenEval 2: questions about every object, number, attribute and relation of 800 prompts, by Soft-TIFA.

    A vision-language model answers each question in one word; an atom's score is the probability of the right
    answer. ``soft_tifa_gm``, the headline, is the mean over prompts of the geometric mean of their atoms, as
    the paper uses for whole prompts; ``soft_tifa_am`` that of the arithmetic mean; ``tifa`` that of the share
    of right greedy answers; ``vqascore`` asks about the whole prompt at once. Further figures: Soft-TIFA AM
    over all atoms of a skill, and GM by the number of atoms. All lie in [0, 1]; the paper's are times 100.
    An image is correct where all greedy answers are right.

    The data is licensed CC BY-NC 4.0 and not included.

    Args:
        data: The published ``geneval2_data.jsonl``, or a file in its format.
        image_map: The map of the released tools from prompts to images, a JSON object; read in place of a
            folder's layout. Relative paths are looked for beside the map and in the working directory.
        checkpoint: Folder or hub id of any transformers image-text-to-text model with a chat template.
        vqascore: Whether VQAScore is computed, which asks one more question for each image.
        device: Device of the model; by default the accelerator, if there is one.
        dtype: Precision of its weights: float32, bfloat16 or float16.
        batch_size: Questions computed at once; the released tool computes one at a time.
    """

    name = "geneval2"
    metric = "soft_tifa_gm"

    def __init__(
        self,
        *,
        data: Path | None = None,
        image_map: Path | None = None,
        checkpoint: str = CHECKPOINT,
        vqascore: bool = True,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 8,
    ) -> None:
        self.data = read_data(data, PUBLISHED)
        self.image_map = None if image_map is None else Path(image_map).expanduser()
        self.vqascore = vqascore
        self.dtype = dtype
        self._items = list(_items(self.data))
        self._vlm = VisionLanguageModel(
            checkpoint, owner=self.name, device=device, dtype=dtype, batch_size=batch_size
        )

    @property
    def notes(self) -> list[str]:
        found = [self.data.note]
        if self._vlm.checkpoint != CHECKPOINT:
            found.append(
                f"The judge is {self._vlm.checkpoint} instead of {CHECKPOINT}: figures do not compare with "
                "published ones."
            )
        return found

    @property
    def judge_name(self) -> str:
        whole = "" if self.vqascore else " without vqascore"
        return f"geneval2 {self.data.sha256[:12]} by {self._vlm.checkpoint} in {self.dtype}{whole}"

    def items(self) -> list[Item]:
        return list(self._items)

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        looked = images_of(samples, self.name)
        images = {i: image for i, image in looked.items() if not isinstance(image, str)}
        atoms = [_atoms(samples[i].item) for i in images]
        answers = dict(zip(images, ask_atoms(self._vlm, list(images.values()), atoms), strict=True))
        whole = self._vqa_scores({i: (image, samples[i].item.prompt) for i, image in images.items()}, answers)
        return [
            Verdict(reason=str(looked[i]))
            if i not in images
            else _verdict(sample.item, answers[i], whole.get(i))
            for i, sample in enumerate(samples)
        ]

    def _vqa_scores(
        self, asked: Mapping[int, tuple[Any, Prompt]], answers: Mapping[int, Answers | str]
    ) -> dict[int, float]:
        """The VQAScore of images that the model could take, by their place."""
        rows = [i for i in asked if self.vqascore and not isinstance(answers[i], str)]
        masses = self._vlm.answer_masses(
            [[asked[i][0]] for i in rows],
            [VQA_SCORE.replace("{prompt}", asked[i][1].text) for i in rows],
            [YES_SPELLINGS] * len(rows),
        )
        return {i: mass.probability for i, mass in zip(rows, masses, strict=True)}

    def summarise(self, judged: Sequence[Judged], weights: np.ndarray) -> dict[str, float]:
        """Means over prompts, then ``skill: NAME`` (AM over all atoms) and ``atoms: N`` (GM)."""
        found = {}
        for metric in ("soft_tifa_gm", "soft_tifa_am", "tifa", *(["vqascore"] if self.vqascore else [])):
            found[metric] = weighted_mean(_values(judged, metric), weights)
        scores = [each.verdict.details.get("scores", []) for each in judged]
        lengths = np.array([len(some) for some in scores], dtype=int)
        flat = np.array([score for some in scores for score in some], dtype=float)
        skills = np.array([skill for each in judged for skill in _skills(each)], dtype=object)
        by_atom = np.repeat(weights, lengths)
        for skill in SKILLS:
            if (mine := skills == skill).any():
                found[f"skill: {skill}"] = weighted_mean(flat[mine], by_atom[mine])
        gm = _values(judged, "soft_tifa_gm")
        counts = np.array([each.sample.item.prompt.metadata["atom_count"] for each in judged], dtype=int)
        for count in sorted(set(counts.tolist())):
            found[f"atoms: {count}"] = weighted_mean(gm[counts == count], weights[counts == count])
        return found

    def write_layout(self, folder: Path, items: Sequence[Item]) -> list[Path]:
        """Writes the map from prompts to images that the released tools read."""
        return [write_image_map(folder, [(item, self.place(item, 0)) for item in items])]

    def read_layout(self, folder: Path) -> Found:
        if self.image_map is not None:
            return read_image_map(self.image_map, self._items)
        return super().read_layout(folder)

    def self_test(self) -> str:
        return tells_colours(
            lambda images, questions: [
                mass.probability
                for mass in self._vlm.answer_masses(
                    images,
                    [TEMPLATE.replace("{question}", question) for question in questions],
                    [YES_SPELLINGS] * len(questions),
                )
            ],
            self.name,
        )

    def write_results(self, folder: Path, judged: Sequence[Judged]) -> list[Path]:
        """Writes ``score_lists.json`` as the released evaluation does, for its analysis script.

        The lists are in the order of the data file. Where prompts are missing, ``benchmark_data.jsonl`` has
        the records of the others, to be given to the script in place of the data file. Further samples of a
        prompt have files of their own, such as ``score_lists_1.json``.
        """
        written = []
        for index in sorted({each.sample.index for each in judged}):
            lists = {
                each.sample.item.id: list(each.verdict.details["scores"])
                for each in judged
                if each.sample.index == index and "scores" in each.verdict.details
            }
            there = [item for item in self._items if item.id in lists]
            suffix = f"_{index}" if index else ""
            path = folder / f"{SCORES}{suffix}.json"
            path.write_text(json.dumps([lists[item.id] for item in there]), encoding="utf-8")
            written.append(path)
            if len(there) < len(self._items):
                path = folder / f"{PROMPTS}{suffix}.jsonl"
                path.write_text("".join(_line(item) for item in there), encoding="utf-8")
                written.append(path)
        return written


def _items(data: DataFile) -> list[Item]:
    """The prompts of a data file.

    Raises:
        ConfigError: If a line does not follow the published format.
    """
    items: list[Item] = []
    prompts = Distinct(data, "prompts")
    for where, record in json_lines(data):
        text = text_in(data, where, record, "prompt")
        prompts.check(where, text)
        try:
            atoms = atoms_from_list(record.get("vqa_list"))
        except ValueError as error:
            raise data.wrong(where, "have questions with answers", f"does not: {error}") from error
        count, skills = record.get("atom_count"), record.get("skills")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise data.wrong(where, "have a whole number atom_count of at least 1", f"has {count!r:.60}")
        if (
            not isinstance(skills, list)
            or len(skills) != len(atoms)
            or not set(map(str, skills)) <= set(SKILLS)
        ):
            raise data.wrong(
                where,
                f"have one of {', '.join(SKILLS)} for each of its {len(atoms)} questions in skills",
                f"has {skills!r:.80}",
            )
        metadata = {"atom_count": count, "vqa_list": record["vqa_list"], "skills": skills}
        items.append(Item(f"{len(items):05d}", Prompt(text, metadata), tuple(dict.fromkeys(skills))))
    return items


def _atoms(item: Item) -> list[Atom]:
    return atoms_from_list(item.prompt.metadata["vqa_list"])


def _verdict(item: Item, answers: Answers | str, vqascore: float | None) -> Verdict:
    if isinstance(answers, str):
        return Verdict(reason=answers)
    skills: list[str] = item.prompt.metadata["skills"]
    values = {"soft_tifa_gm": answers.gm, "soft_tifa_am": answers.am, "tifa": answers.tifa}
    if vqascore is not None:
        values["vqascore"] = vqascore
    told = zip(_atoms(item), answers.said, answers.right, strict=True)
    wrong = [
        f"{atom.question} {said.strip()!r}, not {atom.answer}" for atom, said, right in told if not right
    ]
    return Verdict(
        values=values,
        correct=not wrong,
        reason="; ".join(wrong) or None,
        faults=Counter(s for s, right in zip(skills, answers.right, strict=True) if not right),
        details={
            "scores": list(answers.probabilities),
            "said": list(answers.said),
            "right": list(answers.right),
        },
    )


def _values(judged: Sequence[Judged], metric: str) -> np.ndarray:
    return np.array([each.verdict.values.get(metric, np.nan) for each in judged], dtype=float)


def _skills(judged: Judged) -> list[str]:
    """The skill of each atom that has a score."""
    skills: list[str] = judged.sample.item.prompt.metadata["skills"]
    return skills if "scores" in judged.verdict.details else []


def _line(item: Item) -> str:
    """The record of an item as a line of the data file."""
    return json.dumps({"prompt": item.prompt.text, **item.prompt.metadata}, ensure_ascii=False) + "\n"
