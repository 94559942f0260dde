"""A checklist made from the prompt: the demands on the image, checked one by one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field, model_validator

from tts_vision.chat import LONGEST_ANSWER, ChatEndpoint
from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier, UnusableSample
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers import _structured
from tts_vision.verifiers._cache import DiskCache, Recent
from tts_vision.verifiers._colour_namer import CLIP_CHECKPOINT
from tts_vision.verifiers._detections import Findings, located
from tts_vision.verifiers._object_judge import DetectorName, ObjectJudge
from tts_vision.verifiers._predicates import Demands, Group, Predicate, Relation, from_record, from_text
from tts_vision.verifiers._vlm import VisionLanguageModel

INSTRUCTIONS = """\
List what an image must show to fit a prompt, so that each point can be checked by looking at the image.

- objects: each kind of thing once. name: the thing in the singular, without colour and other attributes; \
count: the number that the prompt gives, else null; colour: the colour that the prompt gives, else null; \
attributes: what else the prompt says of it that can be seen, such as material, size, shape, pose or action, \
each in one to three words.
- relations: how the things lie or act to one another. subject and object: their places in the list of \
objects, from 0; relation: the words between them, such as "left of", "on" or "holding".
- texts: what is to be written in the image, letter by letter.
Leave out style, mood and quality, and whatever the prompt does not say.

For the prompt "two sleepy brown dogs under a table with a sign that says Open" the answer is
{"objects": [{"name": "dog", "count": 2, "colour": "brown", "attributes": ["sleepy"]}, \
{"name": "table", "count": null, "colour": null, "attributes": []}, \
{"name": "sign", "count": null, "colour": null, "attributes": []}], \
"relations": [{"subject": 0, "relation": "under", "object": 1}], "texts": ["Open"]}

The prompt is:
{prompt}

Answer with one such JSON object, and write nothing else."""
CALLED = "checklist"
READ = 4096
NOTHING = Findings({}, [])
"""Of an image that no detector saw."""
"""Prompts whose checklists are remembered."""


class Thing(_structured.Schema):
    """Things of one kind."""

    name: str = Field(min_length=1)
    count: Annotated[int, Field(ge=1)] | None
    colour: str | None
    attributes: list[str]


class Link(_structured.Schema):
    """How one thing lies or acts to another."""

    subject: int
    relation: str = Field(min_length=1)
    object: int


class Contents(_structured.Schema):
    """The things, relations and texts that an image must show."""

    objects: list[Thing]
    relations: list[Link]
    texts: list[str]

    @model_validator(mode="after")
    def _links_name_objects(self) -> Contents:
        for link in self.relations:
            if link.subject == link.object or not {link.subject, link.object} <= set(
                range(len(self.objects))
            ):
                joined = f"{link.subject} and {link.object}"
                raise ValueError(f"relations must join two of {len(self.objects)} objects but got {joined}")
        if not self.objects and not self.texts:
            raise ValueError("nothing is listed")
        return self

    def demands(self) -> Demands:
        """The same as `Demands`."""
        groups = tuple(
            Group(thing.name.lower(), thing.count or 1, thing.count, thing.colour, tuple(thing.attributes))
            for thing in self.objects
        )
        relations = tuple(Relation(link.subject, link.relation, link.object) for link in self.relations)
        return Demands(groups, relations, tuple(self.texts))


@register(
    "verifier",
    "checklist",
    paper="GenEval (Ghosh et al. 2023); TIFA (Hu et al. 2023) and DSG (Cho et al. 2024) for the questions",
    notes={
        "licence": "of the models; Apache-2.0 for the default",
        "weights": "Qwen/Qwen2.5-VL-7B-Instruct, any image-text-to-text model; those of detector",
    },
)
class PromptChecklist(_structured.AsksModel, BatchedVerifier):
    """How much of its prompt an image shows: objects, counts, colours, relations, text, checked one by one.

    A prompt becomes a list of predicates once: by its GenEval record (``include``, ``exclude`` in its
    metadata), by a grammar if it is of GenEval's form ("a photo of two red circles left of a blue star"),
    and by a language model otherwise. Each predicate is a question to a vision-language model, and its
    probability that of "yes"; or a detector decides, 1 or 0. These are the ``parts``; the reason names those
    that failed, and the regions are the detected objects that they are about. If the language model cannot
    parse a prompt, its images are unscored.

    Args:
        verify: ``vqa`` asks the vision-language model; ``detector`` detects, by GenEval's rules, and asks
            only about attributes, written text and relations that boxes do not show.
        combine: ``mean`` of the probabilities, or their ``product``.
        threshold: Probability below which a predicate has failed.
        checkpoint: Folder or hub id of any transformers image-text-to-text model with a chat template; it
            answers the questions and, without `base_url`, parses the prompts.
        template: The text of a question; ``{question}`` is replaced by the question.
        detector: ``grounding_dino`` or ``mask2former``.
        detector_checkpoint: Its folder or hub id; by default its published one.
        detector_size: Shorter side of an image as the detector sees it.
        colours: Folder or hub id of the CLIP that names the colours of detected objects.
        base_url: OpenAI-compatible endpoint, such as ``http://localhost:8000/v1``, that parses the prompts.
        cache: Folder for the checklists of the language model; none by default.
        max_new_tokens: Longest checklist, in tokens.
        dtype: Precision of the language model: float32, bfloat16 or float16.
        batch_size: Questions, or images for the detector, computed at once.
    """

    name = "checklist"
    checks_demands = True

    def __init__(
        self,
        *,
        verify: Literal["vqa", "detector"] = "vqa",
        combine: Literal["mean", "product"] = "mean",
        threshold: float = 0.5,
        checkpoint: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        template: str = "{question} Please answer yes or no.",
        detector: DetectorName = "grounding_dino",
        detector_checkpoint: str | None = None,
        detector_size: int = 800,
        colours: str = CLIP_CHECKPOINT,
        base_url: str | None = None,
        model: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        structured: bool = True,
        timeout: float = 60.0,
        retries: int = 4,
        cache: Path | None = None,
        max_new_tokens: int = LONGEST_ANSWER,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 8,
    ) -> None:
        # the models have batches of their own
        super().__init__(device=device, dtype=dtype, batch_size=2**20)
        for key, value, known in (
            ("verify", verify, ("vqa", "detector")),
            ("combine", combine, ("mean", "product")),
        ):
            if value not in known:
                raise ConfigError(f"{key} must be one of {', '.join(known)} but got {value!r}; change it.")
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold must be in [0, 1] but got {threshold}; change it.")
        if "{question}" not in template:
            raise ConfigError(f"template must contain {{question}} but is {template!r}; put it in.")
        endpoint = ChatEndpoint.named(
            base_url,
            model,
            owner=self.name,
            key_variable=key_variable,
            timeout=timeout,
            retries=retries,
            max_tokens=max_new_tokens,
        )
        self.combine, self.threshold, self.template = combine, threshold, template
        self.structured, self.max_new_tokens = structured, max_new_tokens
        self.cache = None if cache is None else DiskCache(cache)
        self._vlm = VisionLanguageModel(
            checkpoint, owner=self.name, device=self.device, dtype=self.dtype, batch_size=batch_size
        )
        self._reader: VisionLanguageModel | ChatEndpoint = endpoint or self._vlm
        self._asked: list[Any] = (
            [base_url, model, structured, max_new_tokens] if endpoint else [checkpoint, dtype, max_new_tokens]
        )
        self._judge: ObjectJudge | None = None
        if verify == "detector":
            self._judge = ObjectJudge(
                detector,
                checkpoint=detector_checkpoint,
                colours=colours,
                size=detector_size,
                owner=self.name,
                device=self.device,
                batch_size=batch_size,
            )
        self._read: Recent[str, Demands] = Recent(READ)

    def _load(self) -> None:
        if self._judge is None:
            self._vlm.load()
        else:  # the language model loads when a prompt needs it
            self._judge.load()

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        checklists = self.checklists(prompts)
        rows = [i for i, checklist in enumerate(checklists) if isinstance(checklist, Demands)]
        findings: dict[int, Findings | str] = {}
        if self._judge is not None:
            demands = [checklist for checklist in checklists if isinstance(checklist, Demands)]
            findings = dict(zip(rows, self._judge.checked([samples[i] for i in rows], demands), strict=True))
        open_ones: dict[int, list[Predicate]] = {}
        for i, checklist in enumerate(checklists):
            decided = findings.get(i, NOTHING)
            if isinstance(checklist, Demands) and not isinstance(decided, str):
                open_ones[i] = [p for p in checklist.predicates() if p.name not in decided.faults]
        told = self._ask_all([samples[i] for i in open_ones], list(open_ones.values()))
        answers = dict(zip(open_ones, told, strict=True))
        return [
            Score.unscored(checklist)
            if isinstance(checklist, str)
            else self._checked(checklist, findings.get(i, NOTHING), answers.get(i, {}), samples[i].size)
            for i, checklist in enumerate(checklists)
        ]

    def _checked(
        self,
        demands: Demands,
        findings: Findings | str,
        told: dict[str, float] | str,
        size: tuple[int, int],
    ) -> Score:
        """The score of an image.

        Args:
            demands: Those of its prompt.
            findings: Those of a detector, which decide some predicates, or the reason why there are none.
            told: The probabilities of the others, or the reason why there are none.
            size: Width and height of the image.
        """
        if isinstance(findings, str):
            return Score.unscored(findings)
        if isinstance(told, str):
            return Score.unscored(told)
        faults = findings.faults
        parts = {
            p.name: told[p.name] if p.name in told else float(not faults[p.name])
            for p in demands.predicates()
        }
        if any(math.isnan(value) for value in parts.values()):
            return Score(value=math.nan, parts=parts, reason="the model answered NaN")
        failed = {name: faults.get(name) or name for name, value in parts.items() if value < self.threshold}
        value = math.prod(parts.values()) if self.combine == "product" else sum(parts.values()) / len(parts)
        reason = f"failed: {'; '.join(failed.values())}" if failed else None
        regions = located(demands, failed, findings.detections, size)
        return Score(value=value, parts=parts, reason=reason, satisfied=not failed, regions=regions)

    def _ask_all(
        self, samples: Sequence[Image.Image], predicates: Sequence[Sequence[Predicate]]
    ) -> list[dict[str, float] | str]:
        """The probabilities of the predicates of each image by the vision-language model, asked together."""
        asked = [(i, predicate) for i, some in enumerate(predicates) for predicate in some]
        if not asked:
            return [{} for _ in samples]
        questions = [self.template.replace("{question}", predicate.question) for _, predicate in asked]
        try:
            yes = self._vlm.yes_probabilities([[samples[i]] for i, _ in asked], questions)
        except UnusableSample as error:
            if len(samples) == 1:
                return [str(error)]
            pairs = zip(samples, predicates, strict=True)
            return [answer for sample, some in pairs for answer in self._ask_all([sample], [some])]
        told: list[dict[str, float]] = [{} for _ in samples]
        for (i, predicate), probability in zip(asked, yes, strict=True):
            told[i][predicate.name] = probability
        return list(told)

    def checklists(self, prompts: Sequence[Prompt]) -> list[Demands | str]:
        """The demands of each prompt; else the reason why there are none."""
        found: list[Demands | str | None] = []
        for prompt in prompts:
            try:
                found.append(from_record(prompt.metadata) or from_text(prompt.text))
            except ValueError as error:
                found.append(str(error))
        texts = list(dict.fromkeys(p.text for p, checklist in zip(prompts, found) if checklist is None))
        read = self._read_by_model(texts)
        return [read[p.text] if checklist is None else checklist for p, checklist in zip(prompts, found)]

    def _read_by_model(self, texts: Sequence[str]) -> dict[str, Demands | str]:
        """The demands of prompts by the language model, which is asked until it has answered once."""
        found: dict[str, Demands | str] = {text: self._read[text] for text in texts if text in self._read}
        for text in texts:
            kept = self.cache.get(self._key(text)) if self.cache and text not in found else None
            contents = _structured.parsed(kept, Contents, CALLED) if kept is not None else None
            if isinstance(contents, Contents):
                found[text] = self._read[text] = contents.demands()
        new = [text for text in texts if text not in found]
        if new:
            answers = _structured.ask(
                self._reader,
                [[]] * len(new),
                [INSTRUCTIONS.replace("{prompt}", text) for text in new],
                Contents,
                called=CALLED,
                structured=self.structured,
                max_new_tokens=self.max_new_tokens,
            )
            for text, answer in zip(new, answers, strict=True):
                if isinstance(answer, str):
                    found[text] = f"the prompt could not be read: {answer}"
                    continue
                found[text] = self._read[text] = answer.demands()
                if self.cache:
                    self.cache.put(self._key(text), answer.model_dump())
        return found

    def _key(self, text: str) -> str:
        facts = json.dumps([INSTRUCTIONS, _structured.AGAIN, text, self._asked])
        return hashlib.sha256(facts.encode()).hexdigest()
