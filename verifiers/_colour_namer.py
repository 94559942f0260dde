"""A CLIP that names the colours of detected objects, as GenEval does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tts_vision.errors import VerifierError
from tts_vision.memory import in_halves
from tts_vision.model_verifier import LazyModel
from tts_vision.verifiers._backbones import (
    clip_embeddings,
    clip_standard_pixels,
    load_clip,
)
from tts_vision.verifiers._cache import Recent
from tts_vision.verifiers._detections import Detection
from tts_vision.verifiers._predicates import COLOURS, Group
from tts_vision.verifiers._weights import processor_from

CLIP_CHECKPOINT = "openai/clip-vit-large-patch14"
NOUNS = 1024
"""Nouns whose embeddings in all colours are remembered."""
TEMPLATES = (
    "a photo of a {colour} {noun}",
    "a photo of a {colour}-colored {noun}",
    "a photo of a {colour} object",
)
BACKGROUND = (0x99, 0x99, 0x99)
QUICK = "quick_gelu"


class ColourNamer(LazyModel):
    """GenEval's classifier of colours: CLIP on the object cut out and put on grey.

    Args:
        checkpoint: Folder or hub id of a CLIP of transformers.
        owner: Name of the verifier, for messages.
        device: Device of the model; by default the accelerator, if there is one.
        batch_size: Crops computed at once.
    """

    def __init__(self, checkpoint: str, *, owner: str, device: Any, batch_size: int = 8) -> None:
        super().__init__(device=device, batch_size=batch_size)
        self.checkpoint, self.owner = checkpoint, owner
        self._matrices: Recent[tuple[tuple[str, ...], str], Tensor] = Recent(NOUNS)

    def _load(self) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = processor_from(AutoTokenizer, self.checkpoint, self.owner)
        model = load_clip(self.checkpoint, self.owner, self.dtype)
        parts = (model.config.text_config, model.config.vision_config)
        self.is_quick = all(part.hidden_act == QUICK for part in parts)
        if "openai/clip-vit" in self.checkpoint.replace("\\", "/") and not self.is_quick:
            raise VerifierError(
                f"OpenAI's CLIP must run with {QUICK} but the configuration of {self.checkpoint!r} says "
                f"{parts[1].hidden_act}, which names other colours; correct hidden_act in its config.json."
            )
        self._model = model.to(self.device)

    def name(self, image: Image.Image, detection: Detection, group: Group) -> str:
        """The colour of an object: that of GenEval's ten, or the one asked for, which fits it best."""
        return self.names([cut_out(image, detection)], [group])[0]

    @torch.no_grad()
    def names(self, crops: Sequence[Image.Image], groups: Sequence[Group]) -> list[str]:
        """As `name`, of objects that are cut out already, for the group that each is asked for."""
        self.load()

        def work(start: int, stop: int) -> Tensor:
            pixels = clip_standard_pixels(self._model, crops[start:stop])
            return F.normalize(clip_embeddings(self._model, pixels).float(), dim=-1)

        batches = in_halves(len(crops), self.batch_size, work, shrunk=self._use_batches_of)
        embeddings = [each for batch in batches for each in batch]
        return [self._nearest(e, group) for e, group in zip(embeddings, groups, strict=True)]

    def _nearest(self, embedding: Tensor, group: Group) -> str:
        colours = _candidates(group)
        return colours[int((self._matrix(colours, group.noun) @ embedding).argmax())]

    def _matrix(self, colours: tuple[str, ...], noun: str) -> Tensor:
        """A noun in each colour as unit vectors ``(N, D)``, remembered."""
        key = (colours, noun)
        if key not in self._matrices:
            phrases = [t.format(colour=colour, noun=noun) for colour in colours for t in TEMPLATES]
            words = self._tokenizer(phrases, padding=True, truncation=True, return_tensors="pt")
            embeddings = self._model.get_text_features(**words.to(self.device)).pooler_output.float()
            units = F.normalize(embeddings, dim=-1).unflatten(0, (len(colours), len(TEMPLATES)))
            self._matrices[key] = F.normalize(units.mean(1), dim=-1)
        return self._matrices[key]


def _candidates(group: Group) -> tuple[str, ...]:
    """GenEval's colours, and the one asked for."""
    return (*COLOURS, *((group.colour,) if group.colour and group.colour not in COLOURS else ()))


def cut_out(image: Image.Image, detection: Detection) -> Image.Image:
    """The crop of an object for CLIP: its box, with everything outside its mask, if it has one, in grey."""
    if detection.mask is not None:
        shape = Image.fromarray(detection.mask.numpy())
        image = Image.composite(image, Image.new("RGB", image.size, BACKGROUND), shape)
    x0, y0, x1, y1 = detection.box
    left, top = (
        max(0, min(math.floor(x0), image.width - 1)),
        max(0, min(math.floor(y0), image.height - 1)),
    )
    right, bottom = (
        min(image.width, max(math.ceil(x1), left + 1)),
        min(image.height, max(math.ceil(y1), top + 1)),
    )
    return image.crop((left, top, right, bottom))
