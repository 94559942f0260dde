"""WISE: prompts that take world knowledge, judged by a language model with eyes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from tts_vision.chat import ChatEndpoint
from tts_vision.errors import ConfigError
from tts_vision.eval.evaluator import Evaluator, Found, Item, Judged, Sample, Verdict
from tts_vision.eval.evaluators._data import DataFile, Distinct, Published, json_document, read_data, text_in
from tts_vision.eval.evaluators._images import found_by_stem, images_of, numbered_stem
from tts_vision.registry import register
from tts_vision.types import Prompt
from tts_vision.verifiers._structured import Schema, ask
from tts_vision.verifiers._vlm import VisionLanguageModel

PUBLISHED = Published(
    "wise",
    "https://github.com/PKU-YuanGroup/WISE, WISE_legacy/data/cultural_common_sense.json and two others",
    "of the authors",
)
CATEGORIES = {
    "Cultural knowledge": "cultural",
    "time": "time",
    "Space": "space",
    "Biology": "biology",
    "Ecology": "biology",  # one prompt of the published rewritten set
    "Physical Knowledge": "physics",
    "Chemistry": "chemistry",
}
WEIGHTS = {"cultural": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
CHECKPOINT = "Qwen/Qwen2.5-VL-7B-Instruct"
LONGEST = 400

INSTRUCTIONS = """\
You check an image that a text-to-image model made. The prompt only hints at its subject: it takes knowledge \
of the world to see what should be drawn, and the explanation says what that is.

Prompt: {prompt}
Explanation: {explanation}

Give three marks, each 0, 1 or 2. Be strict: give 2 only where you see no fault at all, and the lower mark \
where you hesitate.
- consistency: Does the image show what prompt and explanation ask for? 0: an essential part is missing or \
contradicted; 1: some of it is there; 2: every detail is there.
- realism: Could it be a photograph? 0: plainly artificial or physically impossible; 1: small faults in \
light, matter or anatomy; 2: no trace of its making.
- aesthetic_quality: 0: unpleasant or careless; 1: decent; 2: outstanding composition, colour and style.

Answer with one JSON object of the form {"consistency": 0, "realism": 0, "aesthetic_quality": 0}, and write \
nothing else."""

Mark = Annotated[int, Field(ge=0, le=2)]


class Marks(Schema):
    """The marks of an image."""

    consistency: Mark
    realism: Mark
    aesthetic_quality: Mark

    @property
    def wiscore(self) -> float:
        """WiScore: the weighted mean of the marks, in [0, 1]."""
        return (0.7 * self.consistency + 0.2 * self.realism + 0.1 * self.aesthetic_quality) / 2


@register(
    "evaluator",
    "wise",
    paper="WISE (Niu et al. 2025, arXiv:2503.07265)",
    notes={
        "licence": "of the authors (data, not included); of the model",
        "weights": "an endpoint, or any image-text-to-text model of transformers",
    },
)
class Wise(Evaluator):
    """WISE: 1000 prompts whose subject takes world knowledge to know, marked by a vision-language model.

    The judge gives 0 to 2 for consistency, realism and aesthetic quality; WiScore is (0.7 consistency + 0.2
    realism + 0.1 aesthetic quality) / 2. ``wiscore`` is the mean over images; ``overall`` weights the means
    of the six categories as published, and is missing where a category is. The instructions are this
    toolkit's own and the published judge is one dated model of a company, so figures do not compare with
    published ones.

    Args:
        data: A published JSON file, such as ``cultural_common_sense.json``, or one with the records of all
            three.
        base_url: OpenAI-compatible endpoint of the judge, such as ``http://localhost:8000/v1``; without one,
            a model runs on this machine.
        judge: Name of the model at `base_url`.
        key_variable: Environment variable with the key of `base_url`; sent there if it is set.
        timeout: Seconds until an attempt at the endpoint is given up.
        retries: Further attempts at the endpoint after a failure that may pass.
        parallel: Requests to the endpoint under way at once.
        checkpoint: Folder or hub id of a model on this machine.
        device: Its device; by default the accelerator, if there is one.
        dtype: Precision of its weights: float32, bfloat16 or float16.
        batch_size: Images computed at once on this machine.
        max_new_tokens: Longest answer, in tokens.
    """

    name = "wise"
    metric = "wiscore"

    def __init__(
        self,
        *,
        data: Path | None = None,
        base_url: str | None = None,
        judge: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 4,
        parallel: int = 4,
        checkpoint: str = CHECKPOINT,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 4,
        max_new_tokens: int = LONGEST,
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.data = read_data(data, PUBLISHED)
        self._items = _items(self.data)
        if (base_url is None) != (judge is None):
            raise ConfigError(
                "wise needs base_url and judge, the name of a model there, together or neither but got "
                f"base_url {base_url!r} and judge {judge!r}; give both, or a checkpoint."
            )
        endpoint = ChatEndpoint.named(
            base_url,
            judge,
            owner=self.name,
            key_variable=key_variable,
            timeout=timeout,
            retries=retries,
            parallel=parallel,
            max_tokens=max_new_tokens,
        )
        self._judge: ChatEndpoint | VisionLanguageModel = endpoint or VisionLanguageModel(
            checkpoint, owner=self.name, device=device, dtype=dtype, batch_size=batch_size
        )
        self._asked = f"{judge} at {base_url}" if endpoint else f"{checkpoint} in {dtype}"

    @property
    def notes(self) -> list[str]:
        return [
            self.data.note,
            f"The judge is {self._asked}, with instructions of this toolkit: figures do not compare with "
            "published ones, which are those of GPT-4o-2024-05-13.",
        ]

    @property
    def judge_name(self) -> str:
        return f"wise {self.data.sha256[:12]} by {self._asked}"

    def items(self) -> list[Item]:
        return list(self._items)

    def judge(self, samples: Sequence[Sample]) -> list[Verdict]:
        looked = images_of(samples, self.name)
        images = {i: image for i, image in looked.items() if not isinstance(image, str)}
        answers = ask(
            self._judge,
            [[image] for image in images.values()],
            [_instructions(samples[i].item.prompt) for i in images],
            Marks,
            called="marks",
            max_new_tokens=self.max_new_tokens,
        )
        found = dict(zip(images, answers, strict=True))
        return [
            _verdict(found[i]) if i in found else Verdict(reason=str(looked[i])) for i in range(len(samples))
        ]

    def summarise(self, judged: Sequence[Judged], weights: np.ndarray) -> dict[str, float]:
        """The mean WiScore, the published weighting of the six categories, and the mean of each."""
        found = super().summarise(judged, weights)
        parts = [weight * found.get(name, np.nan) for name, weight in WEIGHTS.items()]
        return {"wiscore": found["wiscore"], "overall": float(sum(parts)), **found}

    def place(self, item: Item, index: int) -> str:
        return item.id if not index else f"{item.id}_{index}"

    def read_layout(self, folder: Path) -> Found:
        return found_by_stem(folder, self._items, self.name, numbered_stem, f"{self._items[0].id}.png")


def _items(data: DataFile) -> list[Item]:
    records = json_document(data)
    if not isinstance(records, list) or not records:
        raise data.wrong("all", "be a JSON list of records", f"is {records!r:.40}")
    numbers = Distinct(data, "prompt_ids")
    items = []
    for place, record in enumerate(records, 1):
        where = f"record {place}"
        if not isinstance(record, Mapping):
            raise data.wrong(where, "have a record for each prompt", f"is {record!r:.40}")
        number = record.get("prompt_id")
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise data.wrong(where, "have a whole number prompt_id", f"has {number!r:.40}")
        numbers.check(where, number)
        category = record.get("Category")
        if category not in CATEGORIES:
            raise data.wrong(where, f"have a Category of {', '.join(CATEGORIES)}", f"has {category!r:.40}")
        text, explanation = (text_in(data, where, record, key) for key in ("Prompt", "Explanation"))
        subcategory = text_in(data, where, record, "Subcategory")
        metadata = {"explanation": explanation, "subcategory": subcategory}
        items.append(Item(str(number), Prompt(text, metadata), (CATEGORIES[category],)))
    return items


def _instructions(prompt: Prompt) -> str:
    words = {"prompt": prompt.text, "explanation": prompt.metadata["explanation"]}
    return re.sub(r"\{(prompt|explanation)\}", lambda match: str(words[match[1]]), INSTRUCTIONS)


def _verdict(marks: Marks | str) -> Verdict:
    if isinstance(marks, str):
        return Verdict(reason=marks)
    return Verdict({"wiscore": marks.wiscore}, details=marks.model_dump())
