"""VideoScore2: a vision-language model that explains, then rates a clip in three dimensions from 1 to 5."""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from tts_vision.errors import ConfigError, VerifierError
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._frames import evenly
from tts_vision.verifiers._qwen_video import FACTOR, MAX_FRAMES, MIN_FRAMES, MIN_PIXELS, looked_at, resized
from tts_vision.verifiers._vlm import VisionLanguageModel

Dimension: TypeAlias = Literal["mean", "visual_quality", "text_to_video_alignment", "physical_consistency"]
DIMENSIONS: tuple[str, ...] = get_args(Dimension)[1:]
FPS, TEMPERATURE = 2.0, 0.7
MAX_PIXELS = 768 * FACTOR**2  # of a frame
ALL_PIXELS = int(128_000 * FACTOR**2 * 0.9)  # of all frames, each pair of which is one
RATINGS = re.compile(
    r"visual quality:\s*(\d+).*?text-to-video alignment:\s*(\d+)"
    r".*?physical/common-sense consistency:\s*(\d+)",
    re.DOTALL | re.IGNORECASE,
)

# word for word, spaces included, because the model was trained on it (TIGER-AI-Lab/VideoScore2, Apache-2.0)
TEMPLATE = """
    You are an expert for evaluating AI-generated videos from three dimensions:
    (1) visual quality – clarity, smoothness, artifacts;
    (2) text-to-video alignment – fidelity to the prompt;
    (3) physical/common-sense consistency – naturalness and physics plausibility.

    Video prompt: {prompt}

    Please output in this format:
    visual quality: <v_score>;\x20
    text-to-video alignment: <t_score>,\x20
    physical/common-sense consistency: <p_score>
    """


@register(
    "verifier",
    "videoscore2",
    paper="VideoScore2 (He et al. 2025), arXiv:2509.22799",
    notes={"licence": "Apache-2.0", "weights": "TIGER-Lab/VideoScore2"},
)
class VideoScore2(BatchedVerifier):
    """VideoScore2: visual quality, alignment with the prompt and physical consistency, each from 1 to 5.

    Qwen2.5-VL watches the clip, explains, and writes three integers; each becomes a soft score by the
    probabilities of the five digits in its place. The value is the mean of the three, or one of them; the
    reason is the explanation. An answer without three ratings leaves the clip unscored.

    The answer is decoded greedily, so that a clip always gets the same score; the released code draws it at
    temperature 0.7. The probabilities are those at temperature 0.7 in both.

    Args:
        checkpoint: Folder or hub id.
        dimension: The value: the mean of all three dimensions, or one of them.
        soft: The soft score of a dimension: ``mode``, as released, is the likeliest rating times its share of
            the probability of all five; ``mean`` is the expected rating.
        max_new_tokens: Longest answer.
        batch_size: Clips computed at once.
    """

    name = "videoscore2"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(
        self,
        *,
        checkpoint: str = "TIGER-Lab/VideoScore2",
        dimension: Dimension = "mean",
        soft: Literal["mode", "mean"] = "mode",
        max_new_tokens: int = 1024,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 1,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        for name, value, known in (
            ("dimension", dimension, ("mean", *DIMENSIONS)),
            ("soft", soft, ("mode", "mean")),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)} but got {value!r}; change it.")
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1 but got {max_new_tokens}; raise it.")
        self.checkpoint, self.dimension, self.soft = checkpoint, dimension, soft
        self.max_new_tokens = max_new_tokens
        self._reader = ClipReader(
            checkpoint, owner=self.name, device=self.device, dtype=self.dtype, batch_size=batch_size
        )

    def _load(self) -> None:
        self._reader.load()

    def _usable(self, sample: Media) -> Video:
        return looked_at(sample, self.name)

    def _score_batch(self, samples: list[Video], prompts: list[Prompt]) -> list[Score]:
        questions = [TEMPLATE.format(prompt=self._reader.plain(prompt.text)) for prompt in prompts]
        frames = [[_frames(video)] for video in samples]
        return [self._score(each) for each in self._reader.written(frames, questions, self.max_new_tokens)]

    def _score(self, answer: Answer) -> Score:
        found = RATINGS.search(answer.text)
        ratings = [int(found[i]) for i in (1, 2, 3)] if found else []
        if found is None or not all(1 <= rating <= 5 for rating in ratings):
            return Score.unscored(
                "the answer must give three ratings from 1 to 5 but is "
                f"{answer.text[-300:]!r}; raise max_new_tokens if it was cut off"
            )
        values = [self._softened(answer.digits_at(found.start(i))) for i in (1, 2, 3)]
        parts = dict(zip(DIMENSIONS, values, strict=True))
        value = sum(values) / 3 if self.dimension == "mean" else parts[self.dimension]
        return Score(value=value, parts=parts, reason=answer.text.strip())

    def _softened(self, probabilities: Tensor) -> float:
        """The soft score of ratings 1 to 5 with these probabilities, which sum to 1."""
        if self.soft == "mean":
            return float(probabilities @ torch.arange(1.0, 6.0))
        best = int(probabilities.argmax())
        return (best + 1) * float(probabilities[best])


@dataclass(frozen=True)
class Answer:
    """A generated text, and the probabilities of ratings at each of its tokens.

    Attributes:
        text: The text.
        ends: Where each token ends in the text.
        digits: ``(N, 5)`` probabilities of the digits 1 to 5, which sum to 1.
    """

    text: str
    ends: Sequence[int]
    digits: Tensor

    def digits_at(self, place: int) -> Tensor:
        """The probabilities ``(5,)`` at the token with the character at a place of the text."""
        return self.digits[bisect.bisect_right(self.ends, place)]


class ClipReader(VisionLanguageModel):
    """A Qwen2.5-VL that watches clips, given as frames ``(T, 3, H, W)`` uint8 at 2 a second."""

    def plain(self, text: str) -> str:
        """A text without the tokens that stand for something else, such as a second clip."""
        self.load()
        for token in self._tokenizer.get_added_vocab():
            text = text.replace(token, "")
        return text

    @torch.no_grad()
    def written(self, clips: Sequence[Sequence[Any]], questions: Sequence[str], length: int) -> list[Answer]:
        """The greedy answers to questions about clips.

        Args:
            clips: A list of the one clip of each question.
            questions: One each.
            length: Most tokens of an answer.

        Raises:
            UnusableSample: If the model cannot take a clip.
            VerifierError: If a digit is no token of its vocabulary.
        """
        self.load()
        digits = [self._tokenizer.encode(str(rating), add_special_tokens=False) for rating in range(1, 6)]
        if not all(len(tokens) == 1 for tokens in digits):
            raise VerifierError(
                f"The ratings that {self.owner!r} reads must be one token each but in the vocabulary of "
                f"{self.checkpoint!r} they are {digits}; give the published checkpoint."
            )

        def forward(inputs: Mapping[str, Any]) -> list[Answer]:
            columns = _Columns([tokens[0] for tokens in digits])
            sequences = self._generate(inputs, length, logits_processor=[columns])
            shares = torch.stack(columns.seen, dim=1)  # (B, N, 5)
            rows = sequences[:, inputs["input_ids"].shape[1] :].tolist()
            return [self._answer(row, share) for row, share in zip(rows, shares)]

        return self._batched(forward, clips, questions)

    def _answer(self, tokens: list[int], digits: Tensor) -> Answer:
        if self._tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(self._tokenizer.eos_token_id)]
        pieces = [
            self._tokenizer.decode(tokens[: i + 1], clean_up_tokenization_spaces=False)
            for i in range(len(tokens))
        ]
        return Answer(pieces[-1] if pieces else "", [len(piece) for piece in pieces], digits)

    def _inputs(self, images: Sequence[Sequence[Any]], questions: Sequence[Any]) -> Any:
        conversations = [
            [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
            for question in questions
        ]
        videos = [clip for (clip,) in images]
        # the model is told 2 frames a second, also where a short clip gives more
        metadata = [
            {"total_num_frames": len(clip), "fps": FPS, "frames_indices": [*range(len(clip))]}
            for clip in videos
        ]
        return self._processor(
            text=self._processor.apply_chat_template(conversations, add_generation_prompt=True),
            videos=videos,
            padding=True,
            return_tensors="pt",
            videos_kwargs={
                "do_resize": False,
                "do_sample_frames": False,
                "cap_pixels_per_frame": False,
                "video_metadata": metadata,
            },
        )


class _Columns:
    """A logits processor without effect that keeps the probabilities of some tokens among each other."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append((scores[:, self.tokens].float() / TEMPERATURE).softmax(-1).cpu())
        return scores


def _frames(video: Video) -> Tensor:
    """The frames ``(T, 3, H, W)`` uint8 that the model watches: an even number of them, 2 a second."""
    total = len(video.frames)
    chosen = evenly(total, frame_count(total, video.fps), nearest=True)
    return resized(video.frames[chosen].permute(0, 3, 1, 2), most_pixels(len(chosen)))


def most_pixels(frames: int) -> int:
    """Pixels of a frame, at most: all frames share those that the model has room for."""
    return max(min(MAX_PIXELS, int(ALL_PIXELS / frames * 2)), int(MIN_PIXELS * 1.05))


def frame_count(total: int, fps: float) -> int:
    """How many frames of a clip the model watches: 2 a second and at least 4, where there are as many.

    Args:
        total: Frames of the clip; a single one counts twice.
        fps: Frames per second of the clip.
    """
    wanted = min(max(total / fps * FPS, MIN_FRAMES), min(MAX_FRAMES, total // 2 * 2), total)
    return max(2, int(wanted) // 2 * 2)
