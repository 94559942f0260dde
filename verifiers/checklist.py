"""A checklist that is made of the prompt: what must be in the picture, checked point by point."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tts_vision.errors import ConfigError
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers import _structured
from tts_vision.verifiers._base import BatchedVerifier, UnusableSample
from tts_vision.verifiers._cache import DiskCache
from tts_vision.verifiers._detectors import CLIP_CHECKPOINT, DetectorName, ObjectJudge
from tts_vision.verifiers._endpoint import ChatEndpoint
from tts_vision.verifiers._predicates import Demands, Group, Predicate, Relation, from_record, from_text
from tts_vision.verifiers._vlm import VisionLanguageModel

INSTRUCTIONS = """\
List what a picture must show to fit a prompt, so that each point can be checked by looking at the picture.

- objects: each kind of thing once. name: the thing in the singular, without colour and other attributes; \
count: the number that the prompt gives, else null; colour: the colour that the prompt gives, else null; \
attributes: what else the prompt says of it that can be seen, such as material, size, shape, pose or action, \
each in one to three words.
- relations: how the things lie or act to one another. subject and object: their places in the list of \
objects, from 0; relation: the words between them, such as "left of", "on" or "holding".
- texts: what is to be written in the picture, letter by letter.
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


class Thing(BaseModel):
    """Things of one kind."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    count: Annotated[int, Field(ge=1)] | None
    colour: str | None
    attributes: list[str]


class Link(BaseModel):
    """How one thing lies or acts to another."""

    model_config = ConfigDict(extra="forbid")

    subject: int
    relation: str = Field(min_length=1)
    object: int


class Contents(BaseModel):
    """What a picture must show."""

    model_config = ConfigDict(extra="forbid")

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
class PromptChecklist(BatchedVerifier):
    """How much of its prompt a picture shows, point by point: objects, counts, colours, relations, text.

    A prompt becomes a list of predicates once: by its GenEval record (``include``, ``exclude`` in its
    metadata), by a grammar if it is of GenEval's form ("a photo of two red circles left of a blue star"),
    and by a language model otherwise. Each predicate is then a question to a vision-language model, and its
    probability the one of "yes"; or a detector says 1 or 0. These are the ``parts``; the reason names those
    that failed. A prompt that the language model cannot read leaves its pictures unscored.

    Args:
        verify: ``vqa`` asks the vision-language model; ``detector`` looks, by GenEval's rules, and asks only
            about attributes, written text and relations that boxes cannot tell.
        combine: ``mean`` of the probabilities, or their ``product``.
        threshold: Probability below which a predicate has failed.
        checkpoint: Folder or hub id of any transformers image-text-to-text model with a chat template; it
            answers the questions and, without `base_url`, reads the prompts.
        template: What is asked; ``{question}`` stands for the question.
        detector: Which one: ``grounding_dino`` or ``mask2former``.
        detector_checkpoint: Its folder or hub id; by default its published one.
        detector_size: Shorter side of a picture as the detector sees it.
        colours: Folder or hub id of the CLIP that names the colours of what was detected.
        base_url: OpenAI-compatible endpoint, such as ``http://localhost:8000/v1``, that reads the prompts.
        model: Name of the model at `base_url`.
        key_variable: Environment variable with the key of `base_url`; sent there if it is set.
        structured: Whether the endpoint is told the JSON schema of the answer; not all know how.
        timeout: Seconds until an attempt at the endpoint is given up.
        retries: Further attempts at the endpoint after a failure that may pass.
        cache: Folder of checklists that a language model made, which is not asked again; none by default.
        max_new_tokens: Longest checklist of a model on this machine.
        device: Where it computes; by default the accelerator, if there is one.
        dtype: Precision of the language model: float32, bfloat16 or float16.
        batch_size: Questions, or pictures for the detector, computed at once.
    """

    name = "checklist"

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
        max_new_tokens: int = 800,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 8,
    ) -> None:
        # the models see to their own batches
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
        )
        self.combine, self.threshold, self.template = combine, threshold, template
        self.structured, self.max_new_tokens = structured, max_new_tokens
        self.cache = None if cache is None else DiskCache(cache)
        self._vlm = VisionLanguageModel(
            checkpoint, owner=self.name, device=self.device, dtype=self.dtype, batch_size=batch_size
        )
        self._reader: VisionLanguageModel | ChatEndpoint = endpoint or self._vlm
        self._asked: list[Any] = (
            [base_url, model, structured] if endpoint else [checkpoint, dtype, max_new_tokens]
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
        self._read: dict[str, Demands] = {}

    def _load(self) -> None:
        if self._judge is None:
            self._vlm.load()
        else:  # the language model loads when a prompt needs it
            self._judge.load()

    def _score_batch(self, samples: list[Image.Image], prompts: list[Prompt]) -> list[Score]:
        checklists = self.checklists(prompts)
        rows = [i for i, checklist in enumerate(checklists) if isinstance(checklist, Demands)]
        wrong: dict[int, dict[str, str] | str] = {}
        if self._judge is not None:
            demands = [checklist for checklist in checklists if isinstance(checklist, Demands)]
            wrong = dict(zip(rows, self._judge.wrong([samples[i] for i in rows], demands), strict=True))
        return [
            Score.unscored(checklist)
            if isinstance(checklist, str)
            else self._checked(sample, checklist, wrong.get(i, {}))
            for i, (sample, checklist) in enumerate(zip(samples, checklists, strict=True))
        ]

    def _checked(self, sample: Image.Image, demands: Demands, wrong: dict[str, str] | str) -> Score:
        """The score of a picture, of which a detector may have told what is wrong with some predicates."""
        if isinstance(wrong, str):
            return Score.unscored(wrong)
        predicates = demands.predicates()
        open_ones = [predicate for predicate in predicates if predicate.name not in wrong]
        try:
            told = dict(zip((p.name for p in open_ones), self._ask(sample, open_ones), strict=True))
        except UnusableSample as error:
            return Score.unscored(str(error))
        parts = {p.name: told[p.name] if p.name in told else float(not wrong[p.name]) for p in predicates}
        if any(math.isnan(value) for value in parts.values()):
            return Score(value=math.nan, parts=parts, reason="the model answered NaN")
        failed = [wrong.get(name) or name for name, value in parts.items() if value < self.threshold]
        value = math.prod(parts.values()) if self.combine == "product" else sum(parts.values()) / len(parts)
        return Score(value=value, parts=parts, reason=f"failed: {'; '.join(failed)}" if failed else None)

    def _ask(self, sample: Image.Image, predicates: Sequence[Predicate]) -> list[float]:
        """The probability of each predicate by the vision-language model."""
        if not predicates:
            return []
        questions = [self.template.replace("{question}", predicate.question) for predicate in predicates]
        return self._vlm.yes_probabilities([[sample]] * len(questions), questions)

    def checklists(self, prompts: Sequence[Prompt]) -> list[Demands | str]:
        """What each prompt asks for; else why that cannot be said."""
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
        """What the language model makes of prompts; it is asked once, until it has answered."""
        for text in texts:
            kept = self.cache.get(self._key(text)) if self.cache and text not in self._read else None
            contents = _structured.parsed(kept, Contents, CALLED) if kept is not None else None
            if isinstance(contents, Contents):
                self._read[text] = contents.demands()
        new = [text for text in texts if text not in self._read]
        failed: dict[str, str] = {}
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
                    failed[text] = f"the prompt could not be read: {answer}"
                    continue
                self._read[text] = answer.demands()
                if self.cache:
                    self.cache.put(self._key(text), answer.model_dump())
        return {text: failed[text] if text in failed else self._read[text] for text in texts}

    def _key(self, text: str) -> str:
        facts = json.dumps([INSTRUCTIONS, _structured.AGAIN, text, self._asked])
        return hashlib.sha256(facts.encode()).hexdigest()
