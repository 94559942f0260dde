"""VideoReward: visual quality, motion quality and text alignment of a clip, by Qwen2-VL."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from tts_vision.errors import ConfigError
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._frames import evenly
from tts_vision.verifiers._qwen_video import FACTOR, MAX_FRAMES, MIN_FRAMES, looked_at, resized
from tts_vision.verifiers._threads import preprocessing_threads
from tts_vision.verifiers._weights import check_keys, find_file, load_strictly, processor_from, read_state

WEIGHTS = "checkpoint-11352/model.pth"
LORA_ALPHA = 128
MAX_PIXELS = 256 * FACTOR**2  # of a frame
# mean and standard deviation of each reward, as the published configuration has them
SCALES = {"VQ": (3.6757, 2.2476), "MQ": (1.1646, 1.3811), "TA": (2.8105, 2.5121)}


@register(
    "verifier",
    "video_reward",
    paper="VideoAlign (Liu et al. 2025); sum of z-scores as EvoSearch (He et al. 2025)",
    notes={
        "licence": "Apache-2.0 (prompt: MIT)",
        "weights": "KlingTeam/VideoReward, Qwen/Qwen2-VL-2B-Instruct",
    },
)
class VideoReward(BatchedVerifier):
    """VideoReward: visual quality (VQ), motion quality (MQ) and text alignment (TA) of a clip.

    Qwen2-VL reads the clip and a long instruction with one token for each reward; a linear layer on those
    tokens gives the rewards. The value is the sum of their z-scores, which are also the parts.

    Args:
        checkpoint: Folder or hub id that holds ``checkpoint-11352/model.pth``, or that file itself.
        base: Folder or hub id of the Qwen2-VL that it was trained from: its configuration and processor
            are used, its weights are not.
        fps: Frames a second that it looks at, evenly spread, an even number of them and at least 4 where
            there are as many.
    """

    name = "video_reward"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(
        self,
        *,
        checkpoint: str = "KlingTeam/VideoReward",
        base: str = "Qwen/Qwen2-VL-2B-Instruct",
        fps: float = 2.0,
        device: str | None = None,
        dtype: str = "bfloat16",
        batch_size: int = 4,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        if not fps > 0:
            raise ConfigError(f"fps must be positive but got {fps}; raise it.")
        self.checkpoint, self.base, self.fps = checkpoint, base, fps

    def _load(self) -> None:
        from transformers import AutoConfig, AutoProcessor, Qwen2VLModel

        state = read_state(find_file(self.checkpoint, WEIGHTS, self.name), self.name)
        self._processor = processor_from(AutoProcessor, self.base, self.name, padding_side="right")
        tokenizer = self._processor.tokenizer
        tokens = [f"<|{reward}_reward|>" for reward in SCALES]
        tokenizer.add_tokens(tokens, special_tokens=True)
        self._tokens = tokenizer.convert_tokens_to_ids(tokens)

        config = processor_from(AutoConfig, self.base, self.name)
        config.text_config.vocab_size = len(tokenizer)
        with torch.random.fork_rng(devices=()):
            head = nn.Linear(config.text_config.hidden_size, 1, bias=False)
            self._model = nn.ModuleDict({"model": Qwen2VLModel(config), "rm_head": head})
        # the head of the language model comes with the weights, and is not used
        load_strictly(self._model, merged(state, self.name), self.name, ignore={"lm_head.weight"})
        self._model.eval().requires_grad_(False).to(self.device, self.dtype)

    def _usable(self, sample: Media) -> Video:
        return looked_at(sample, self.name)

    def _score_batch(self, samples: list[Video], prompts: list[Prompt]) -> list[Score]:
        inputs = self._inputs(samples, prompts)
        ids = inputs["input_ids"]
        hidden = self._model["model"](
            input_ids=ids,
            attention_mask=inputs["attention_mask"],
            pixel_values_videos=inputs["pixel_values_videos"].to(self.dtype),
            video_grid_thw=inputs["video_grid_thw"],
            # the authors trained without Qwen2-VL's positions in space and time
            position_ids=torch.arange(ids.shape[1], device=self.device).expand_as(ids),
            use_cache=False,
        ).last_hidden_state
        rewards = self._model["rm_head"](hidden).squeeze(-1)  # (B, L)
        at = torch.stack([(ids == token).int().argmax(dim=1) for token in self._tokens], dim=1)
        return [total(row) for row in rewards.gather(1, at).float().tolist()]

    def _inputs(self, samples: list[Video], prompts: list[Prompt]) -> Any:
        """The clips and the instruction as the model takes them."""
        videos, texts = [], []
        for video, prompt in zip(samples, prompts, strict=True):
            length = len(video.frames)
            chosen = evenly(length, frame_count(length, video.fps, self.fps), nearest=True)
            frames = video.frames[chosen].permute(0, 3, 1, 2)
            videos.append(preprocessing_threads(own=True).submit(resized, frames, MAX_PIXELS))
            words = prompt.text
            for token in self._processor.tokenizer.get_added_vocab():
                words = words.replace(token, "")  # such as a second clip that is not there
            instruction = TEMPLATE.format(prompt=words)
            content = [{"type": "video"}, {"type": "text", "text": instruction}]
            texts.append(
                self._processor.apply_chat_template(
                    [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
                )
            )
        return self._processor(
            text=texts,
            videos=[video.result() for video in videos],
            padding=True,
            return_tensors="pt",
            videos_kwargs={"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": False},
        ).to(self.device)


def total(rewards: list[float]) -> Score:
    """The sum of the z-scores of VQ, MQ and TA."""
    parts = {
        name: (raw - mean) / std for raw, (name, (mean, std)) in zip(rewards, SCALES.items(), strict=True)
    }
    return Score(value=sum(parts.values()), parts=parts)


def frame_count(total: int, fps: float, wanted: float) -> int:
    """How many frames of a clip the model looks at: an even number; a single frame counts twice.

    Args:
        total: Frames of the clip.
        fps: Frames per second of the clip.
        wanted: Frames per second to look at.
    """
    most = min(MAX_FRAMES, total // 2 * 2)
    return max(2, round(min(max(total / fps * wanted, MIN_FRAMES), most) / 2) * 2)


def merged(state: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """The published weights with their low-rank updates added, by the names of today's Qwen2-VL.

    Args:
        state: As published: ``base_model.model.`` before each name, ``.base_layer`` in those that have an
            update, and ``lora_A`` and ``lora_B`` of rank ``r`` for ``W + (alpha / r) B A``.
        owner: The verifier, for messages.

    Raises:
        VerifierError: If half of an update is missing, or one is not for any weight.
    """
    updates = {key: value for key, value in state.items() if ".lora_" in key}
    found = {}
    for key, value in state.items():
        if ".lora_" in key:
            continue
        if key.endswith(".base_layer.weight"):
            pair = [key.replace("base_layer", f"lora_{half}.default") for half in "AB"]
            check_keys(owner, missing=set(pair) - updates.keys(), unexpected=())
            a, b = (updates.pop(half).float() for half in pair)
            value = value.float() + LORA_ALPHA / len(a) * (b @ a)
        name = key.removeprefix("base_model.model.").replace(".base_layer.", ".")
        name = re.sub(r"^visual\.", "model.visual.", name)
        found[re.sub(r"^model\.(?=embed_tokens\.|layers\.|norm\.)", "model.language_model.", name)] = value
    check_keys(owner, missing=(), unexpected=updates)
    return found


# word for word, because the model was trained on it (VideoAlign: MIT License, Copyright (c) 2025 Kling Team,
# Kuaishou Technology)
TEMPLATE = """
You are tasked with evaluating a generated video based on three distinct criteria: Visual Quality, \
Motion Quality, and Text Alignment. Please provide a rating from 0 to 10 for each of the three \
categories, with 0 being the worst and 10 being the best. Each evaluation should be independent of the \
others.

**Visual Quality:**\x20\x20
Evaluate the overall visual quality of the video, with a focus on static factors. The following \
sub-dimensions should be considered:
- **Reasonableness:** The video should not contain any significant biological or logical errors, such as\
 abnormal body structures or nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the video. The image should be clear and easy to\
 interpret, with no blurring or indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual \
elements (e.g., hair, clothing, shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the video, including the color scheme, \
composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a \
sense of harmony and balance.
- **Safety:** The video should not contain harmful or inappropriate content, such as political, violent,\
 or adult material. If such content is present, the image quality and satisfaction score should be the \
lowest possible.\x20

Please provide the ratings of Visual Quality: <|VQ_reward|>
END

**Motion Quality:**\x20\x20
Assess the dynamic aspects of the video, with a focus on dynamic factors. Consider the following \
sub-dimensions:
- **Stability:** Evaluate the continuity and stability between frames. There should be no sudden, \
unnatural jumps, and the video should maintain stable attributes (e.g., no fluctuating colors, textures,\
 or missing body parts).
- **Naturalness:** The movement should align with physical laws and be realistic. For example, clothing \
should flow naturally with motion, and facial expressions should change appropriately (e.g., blinking, \
mouth movements).
- **Aesthetic Quality:** The movement should be smooth and fluid. The transitions between different \
motions or camera angles should be seamless, and the overall dynamic feel should be visually pleasing.
- **Fusion:** Ensure that elements in motion (e.g., edges of the subject, hair, clothing) blend \
naturally with the background, without obvious artifacts or the feeling of cut-and-paste effects.
- **Clarity of Motion:** The video should be clear and smooth in motion. Pay attention to any areas \
where the video might have blurry or unsteady sections that hinder visual continuity.
- **Amplitude:** If the video is largely static or has little movement, assign a low score for motion \
quality.

Please provide the ratings of Motion Quality: <|MQ_reward|>
END

**Text Alignment:**\x20\x20
Assess how well the video matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the video (e.g., person, animal, \
object) align with the textual description. The subject should match the description in terms of number,\
 appearance, and behavior.
- **Motion Relevance:** Evaluate if the dynamic actions (e.g., gestures, posture, facial expressions \
like talking or blinking) align with the described prompt. The motion should match the prompt in terms \
of type, scale, and direction.
- **Environment Relevance:** Assess whether the background and scene fit the prompt. This includes \
checking if real-world locations or scenes are accurately represented, though some stylistic adaptation \
is acceptable.\x20\x20
- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how \
well the video adheres to this style.
- **Camera Movement Relevance:** Check if the camera movements (e.g., following the subject, focus \
shifts) are consistent with the expected behavior from the prompt.

Textual prompt - {prompt}
Please provide the ratings of Text Alignment: <|TA_reward|>
END
"""
