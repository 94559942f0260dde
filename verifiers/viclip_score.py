"""ViCLIP score: how well a clip fits its prompt, motion included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tts_vision.errors import VerifierError
from tts_vision.model_verifier import BatchedVerifier
from tts_vision.registry import register
from tts_vision.types import Media, Modality, Prompt, Score, Video
from tts_vision.verifiers._backbones import CLIP_MEAN, CLIP_STD
from tts_vision.verifiers._frames import clip, middles
from tts_vision.verifiers._rewards import TextCache, cosines
from tts_vision.verifiers._viclip import Sizes, ViCLIP
from tts_vision.verifiers._weights import find_file, load_strictly, read_state

FILE = "ViClip-InternVid-10M-FLT.pth"
CHECKPOINT = "OpenGVLab/ViCLIP"


def viclip_pixels(frames: Tensor, size: int) -> Tensor:
    """Frames as VBench gives them to ViCLIP.

    They are resized as bytes: bicubic without a filter, rounded and clipped; cropped in the centre.

    Args:
        frames: ``(T, H, W, 3)`` uint8.
        size: Side of the result.

    Returns:
        ``(T, 3, size, size)`` float32.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    pixels = TF.resize(frames.permute(0, 3, 1, 2), [size], InterpolationMode.BICUBIC, antialias=False)
    return TF.normalize(TF.center_crop(pixels, [size]).float() / 255, list(CLIP_MEAN), list(CLIP_STD))


@register(
    "verifier",
    "viclip_score",
    paper="InternVid (Wang et al. 2024); VBench (Huang et al. 2024), overall consistency, temporal style",
    notes={"licence": "Apache-2.0 (code); of the weights see their card", "weights": f"{CHECKPOINT}: {FILE}"},
)
class ViClipScore(BatchedVerifier):
    """Cosine of the ViCLIP embeddings of a clip and its prompt, in [-1, 1]; about 0.1 to 0.3 for most.

    It looks at the middle frames of eight equal intervals; the last frame repeats in a shorter clip. Prompts
    are cut at 32 tokens. As VBench's overall consistency and temporal style.

    Args:
        checkpoint: File of weights, a folder that holds the published one, or a hub id.
        batch_size: Clips computed at once.
    """

    name = "viclip_score"
    accepts: frozenset[Modality] = frozenset({"video"})

    def __init__(
        self,
        *,
        checkpoint: str = CHECKPOINT,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int = 4,
    ) -> None:
        super().__init__(device=device, dtype=dtype, batch_size=batch_size)
        self.checkpoint = checkpoint

    def _load(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        state = read_state(find_file(self.checkpoint, FILE, self.name), self.name)
        self.sizes = Sizes.of(state, self.name)
        self._tokenizer: Any = SimpleTokenizer(context_length=self.sizes.context)
        if self.sizes.words < self._tokenizer.vocab_size:
            raise VerifierError(
                f"The weights of {self.name!r} must know the {self._tokenizer.vocab_size} tokens of CLIP but "
                f"have {self.sizes.words}; give the published {FILE}."
            )
        with torch.device("meta"):
            model = ViCLIP(self.sizes)
        load_strictly(model, state, self.name, assign=True)
        self._model = model.eval().requires_grad_(False).to(self.device, self.dtype)
        self._texts = TextCache(self._encode)

    def _encode(self, texts: list[str]) -> Tensor:
        return self._model.text_encoder(self._tokenizer(texts).to(self.device))

    def _usable(self, sample: Media) -> Video:
        return clip(sample, self.name)

    def _score_batch(self, samples: list[Video], prompts: list[Prompt]) -> list[Score]:
        looked = [video.frames[middles(len(video.frames), self.sizes.frames)] for video in samples]
        pixels = torch.stack([viclip_pixels(frames, self.sizes.pixels) for frames in looked])
        seen = self._model.vision_encoder(pixels.transpose(1, 2).to(self.device, self.dtype))
        return [
            Score(value=value) for value in cosines(seen, self._texts([p.text for p in prompts])).tolist()
        ]
