"""A vision-language model as a judge with a rubric, on this machine or behind an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tts_vision.chat import LONGEST_ANSWER, ChatEndpoint, ImageFormat
from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Prompt, Score
from tts_vision.verifiers._cache import DiskCache, key_of
from tts_vision.verifiers._structured import AGAIN, AsksModel, Schema, ask, out_of_ten, parsed
from tts_vision.verifiers._vlm import VisionLanguageModel

Metric = Literal[
    "accuracy_to_prompt",
    "creativity_and_originality",
    "visual_quality_and_realism",
    "consistency_and_cohesion",
    "emotional_or_thematic_resonance",
    "overall_score",
]


class Aspect(Schema):
    """A judgement of one aspect."""

    explanation: str
    score: Annotated[float, BeforeValidator(out_of_ten), Field(ge=0, le=10)]

    @model_validator(mode="before")
    @classmethod
    def _explained(cls, value: Any) -> Any:
        """Takes a bare mark, and one without an explanation."""
        if not isinstance(value, dict):
            return {"explanation": "", "score": value}
        return {"explanation": "", **value}


class Rubric(Schema):
    """Judgements of all aspects."""

    accuracy_to_prompt: Aspect
    creativity_and_originality: Aspect
    visual_quality_and_realism: Aspect
    consistency_and_cohesion: Aspect
    emotional_or_thematic_resonance: Aspect
    overall_score: Aspect


INSTRUCTIONS = """\
You judge an image that a text-to-image model made for this prompt:
{prompt}

Give each aspect a score from 0 (worst) to 10 (best), and explain it in one or two sentences that name what \
you see. Use the whole range: 10 means that nothing could be better.
- accuracy_to_prompt: Is everything there that the prompt asks for, and only that: objects, their number, \
colours, attributes, actions, positions, written text?
- creativity_and_originality: Is the idea fresh within what the prompt asks for?
- visual_quality_and_realism: Light, texture, anatomy, perspective, sharpness; or skill in the style that \
is asked for. Flaws such as blur, artefacts or deformed parts cost points.
- consistency_and_cohesion: Do all parts belong to one scene and one style, without contradiction?
- emotional_or_thematic_resonance: Does the image carry the mood or theme that the prompt calls for?
- overall_score: All of it together; accuracy to the prompt counts most.

Answer with one JSON object that has these six keys, each with an object of the form \
{"explanation": "...", "score": 0}, and write nothing else."""


@register(
    "verifier",
    "vlm_judge",
    paper="Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps (Ma et al. 2025)",
    notes={
        "licence": "of the model; Apache-2.0 for the default",
        "weights": "Qwen/Qwen2.5-VL-7B-Instruct, any image-text-to-text model, or an endpoint",
    },
)
class VLMJudge(AsksModel, BatchedVerifier):
    """A vision-language model that judges six aspects by a rubric, each from 0 to 10.

    The value is one aspect, all are parts, and the explanation of the value is the reason. An answer that
    does not follow the rubric is asked for once more; then the image is unscored.

    Args:
        metric: The aspect that is the value.
        batch_size: Images computed at once on this machine.
    """

    name = "vlm_judge"

    def __init__(
        self,
        *,
        metric: Metric = "overall_score",
        checkpoint: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        base_url: str | None = None,
        model: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        structured: bool = True,
        temperature: float | None = 0.0,
        timeout: float = 60.0,
        retries: int = 4,
        parallel: int = 4,
        cache: Path | None = None,
        max_new_tokens: int = LONGEST_ANSWER,
        image_format: ImageFormat = "jpeg",
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 4,
    ) -> None:
        # an endpoint has parallel requests of its own
        super().__init__(device=device, dtype=dtype, batch_size=batch_size if base_url is None else 2**20)
        if metric not in Rubric.model_fields:
            raise ConfigError(f"metric must be one of {', '.join(Rubric.model_fields)} but got {metric!r}.")
        endpoint = ChatEndpoint.named(
            base_url,
            model,
            owner=self.name,
            key_variable=key_variable,
            timeout=timeout,
            retries=retries,
            parallel=parallel,
            temperature=temperature,
            max_tokens=max_new_tokens,
            image_format=image_format,
        )
        self.metric = metric
        self.structured = structured
        self.max_new_tokens = max_new_tokens
        self.cache = None if cache is None else DiskCache(cache)
        self._judge: VisionLanguageModel | ChatEndpoint
        self._asked: list[Any] = (
            [base_url, model, temperature, structured, max_new_tokens, image_format]
            if endpoint
            else [checkpoint, dtype, max_new_tokens]
        )
        self._judge = endpoint or VisionLanguageModel(
            checkpoint, owner=self.name, device=self.device, dtype=self.dtype, batch_size=batch_size
        )

    def _load(self) -> None:
        self._judge.load()

    def _score_batch(self, samples: list[Any], prompts: list[Prompt]) -> list[Score]:
        questions = [INSTRUCTIONS.replace("{prompt}", prompt.text) for prompt in prompts]
        keys = [key_of(s, q, AGAIN, self._asked) for s, q in zip(samples, questions)]
        verdicts: dict[str, Rubric | str] = {}
        for key in dict.fromkeys(keys) if self.cache else ():
            verdict = parsed(self.cache.get(key), Rubric, "rubric") if self.cache else ""
            if isinstance(verdict, Rubric):
                verdicts[key] = verdict
        new = {key: i for i, key in enumerate(keys) if key not in verdicts}
        found = ask(
            self._judge,
            [[samples[i]] for i in new.values()],
            [questions[i] for i in new.values()],
            Rubric,
            called="rubric",
            structured=self.structured,
            max_new_tokens=self.max_new_tokens,
        )
        for key, verdict in zip(new, found, strict=True):
            verdicts[key] = verdict
            if self.cache and isinstance(verdict, Rubric):
                self.cache.put(key, verdict.model_dump())
        return [self._score(verdicts[key]) for key in keys]

    def _score(self, verdict: Rubric | str) -> Score:
        if isinstance(verdict, str):
            return Score.unscored(verdict)
        parts = {name: getattr(verdict, name).score for name in Rubric.model_fields}
        return Score(
            value=parts[self.metric], parts=parts, reason=getattr(verdict, self.metric).explanation or None
        )
