"""LLaVA-OneVision in the layout of LLaVA-NeXT, as its authors and Image-Generation-CoT publish it.

transformers has the model under other names and cuts an image into tiles; these checkpoints are loaded
key by key and see one square tile, as the reward models of Image-Generation-CoT were trained to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tts_vision.chat import Question, turns
from tts_vision.errors import VerifierError
from tts_vision.model_verifier import UnusableSample
from tts_vision.verifiers._vlm import VisionLanguageModel
from tts_vision.verifiers._weights import load_strictly, processor_from, read_state

TOWER = "siglip-so400m-patch14-384"
SIDE, PATCH, HEADS = 384, 14, 16  # of this tower; its other sizes are those of the tensors
MEAN, STD = 0.5, 0.5
MARK = "<image>"
LANGUAGE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)


class LlavaNext(VisionLanguageModel):
    """A LLaVA-OneVision checkpoint in the layout of LLaVA-NeXT.

    An image is padded to a square with the processor's mean, and is one tile of 384 pixels. It comes first in
    the first turn, before the text.

    Args:
        checkpoint: A folder, or a repository on the Hugging Face hub, with the folder inside it if there
            is one: ``owner/name`` or ``owner/name/folder``.
        owner: Name of the plugin, for messages.
    """

    def _read_model(self) -> Any:
        from accelerate import init_empty_weights
        from transformers import AutoTokenizer, GenerationConfig, LlavaOnevisionForConditionalGeneration

        folder = find_folder(self.checkpoint, self.owner)
        settings = _settings(folder, self.owner)
        self._tokenizer = processor_from(AutoTokenizer, str(folder), self.owner)
        state = convert(read_folder(folder, self.owner))
        config = _config(settings, state, len(self._tokenizer), self.owner)
        with init_empty_weights(include_buffers=False):
            model = LlavaOnevisionForConditionalGeneration(config)
        if config.tie_word_embeddings and EMBEDDINGS in state:
            state.setdefault("lm_head.weight", state[EMBEDDINGS])
        inner = "model.vision_tower.vision_model."  # of older versions of transformers
        if any(key.startswith(inner) for key in model.state_dict()):
            state = {key.replace("model.vision_tower.", inner, 1): value for key, value in state.items()}
        state = {key: value.to(self.dtype) for key, value in state.items()}
        load_strictly(model, state, self.owner, assign=True)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        self._image_token = config.image_token_index
        self._tokens_per_image = (SIDE // PATCH) ** 2 + 1  # the end of the line
        return model.eval().requires_grad_(False)

    def _inputs(self, images: Sequence[Sequence[Image.Image]], questions: Sequence[Question]) -> Any:
        from transformers import BatchFeature

        rows = [self._tokens(len(shown), question) for shown, question in zip(images, questions)]
        longest = max(map(len, rows))
        pad = self._tokenizer.pad_token_id
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }
        tiles = [tile(image) for shown in images for image in shown]
        if tiles:
            inputs["pixel_values"] = torch.stack(tiles)[:, None]
            inputs["image_sizes"] = torch.full((len(tiles), 2), SIDE)
            # images of one group are not cut into tiles, and a group must have more than one
            inputs["batch_num_images"] = torch.tensor([len(tiles) + 1])
        return BatchFeature(inputs)

    def _tokens(self, images: int, question: Question) -> list[int]:
        """A conversation in ChatML with LLaVA-NeXT's system line, as tokens."""
        if any(MARK in text for text in turns(question)):
            raise UnusableSample(f"a question must not contain {MARK!r}, which stands for an image")
        text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        for i, turn in enumerate(turns(question)):
            role, shown = ("assistant", "") if i % 2 else ("user", "" if i else MARK * images)
            text += f"<|im_start|>{role}\n{shown}{turn}<|im_end|>\n"
        text += "<|im_start|>assistant\n"
        tokens: list[int] = []
        for i, part in enumerate(text.split(MARK)):  # each part by itself
            tokens += [self._image_token] * (self._tokens_per_image if i else 0)
            tokens += self._tokenizer(part, add_special_tokens=False).input_ids
        return tokens


def tile(image: Image.Image) -> Tensor:
    """The image as the tower takes it: padded to a square, resized, normalised; ``(3, 384, 384)``."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (int(MEAN * 255),) * 3)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
    return (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - MEAN) / STD


EMBEDDINGS = "model.language_model.embed_tokens.weight"
NAMES = {
    "model.vision_tower.vision_tower.vision_model.": "model.vision_tower.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.image_newline": "model.image_newline",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
}
"""Prefixes of LLaVA-NeXT's keys, and their names in transformers' LLaVA-OneVision."""


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of transformers; keys that LLaVA-NeXT does not have stay as they are."""
    found = {}
    for key, value in state.items():
        prefix = next((p for p in NAMES if key.startswith(p)), "")
        if not key.endswith(".inv_freq"):  # a buffer that old versions saved
            found[NAMES.get(prefix, "") + key.removeprefix(prefix)] = value
    return found


def _settings(folder: Path, owner: str) -> dict[str, Any]:
    """The checkpoint's ``config.json``.

    Raises:
        VerifierError: If it is not that of such a model.
    """
    try:
        settings = json.loads((folder / "config.json").read_text())
        tower = str(settings["mm_vision_tower"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise VerifierError(
            f"The checkpoint of {owner!r} must have a config.json that names its mm_vision_tower but "
            f"{str(folder)!r} has none; give one in the layout of LLaVA-NeXT."
        ) from error
    merge = settings.get("mm_patch_merge_type", "")
    if not tower.endswith(TOWER) or "unpad" not in merge:
        raise VerifierError(
            f"The checkpoint of {owner!r} must see with {TOWER} and merge by spatial_unpad but "
            f"{str(folder)!r} sees with {tower} and merges by {merge or 'flat'}; give a LLaVA-OneVision."
        )
    return settings


def _config(settings: Mapping[str, Any], state: Mapping[str, Tensor], tokens: int, owner: str) -> Any:
    """The configuration of transformers that fits a checkpoint."""
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    tower = "model.vision_tower."
    sizes = (tower + "embeddings.patch_embedding.weight", tower + "encoder.layers.0.mlp.fc1.weight")
    missing = [key for key in sizes if key not in state]
    if missing:
        raise VerifierError(
            f"The weights of {owner!r} must hold those of the vision tower but {', '.join(missing)} (as "
            "transformers calls it) is missing; give the published checkpoint of this verifier."
        )
    layers = {key.removeprefix(tower).split(".")[2] for key in state if key.startswith(tower + "encoder.")}
    vision = SiglipVisionConfig(
        hidden_size=state[sizes[0]].shape[0],
        intermediate_size=state[sizes[1]].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    language = Qwen2Config(**{name: settings[name] for name in LANGUAGE if name in settings})
    if tokens >= language.vocab_size:
        raise VerifierError(
            f"The model of {owner!r} must have more embeddings than its tokenizer has tokens but has "
            f"{language.vocab_size} for {tokens}; give the tokenizer of this checkpoint."
        )
    return LlavaOnevisionConfig(
        text_config=language,
        vision_config=vision,
        image_token_index=tokens,  # the first embedding that no token uses
        video_token_index=language.vocab_size,
        tie_word_embeddings=language.tie_word_embeddings,
    )


def read_folder(folder: Path, owner: str) -> dict[str, Tensor]:
    """All tensors in a folder of weights, in one file or several.

    Raises:
        VerifierError: If it holds none, or a file cannot be read.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise VerifierError(
            f"The folder of {owner!r} must hold safetensors or pytorch_model.bin but {str(folder)!r} holds "
            "neither; point checkpoint at the folder with the weights."
        )
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_state(file, owner)
    return state


def find_folder(checkpoint: str, owner: str) -> Path:
    """The folder of a checkpoint, downloaded if it is not on disk.

    Args:
        checkpoint: A path, or ``owner/name`` on the Hugging Face hub, perhaps with a folder inside it.
        owner: The verifier, for messages.

    Raises:
        VerifierError: If it is not there and cannot be downloaded.
    """
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    parts = checkpoint.split("/")
    if checkpoint.startswith((".", "/", "~")) or len(parts) < 2:
        raise VerifierError(
            f"The weights of {owner!r} must be an existing folder or a hub id 'owner/name' but got "
            f"{checkpoint!r}; check the path."
        )
    from huggingface_hub import snapshot_download

    inside = "/".join(parts[2:])
    try:
        # repositories put such folders at their root or into one more folder
        wanted = [f"{inside}/*", f"*/{inside}/*"] if inside else None
        root = Path(snapshot_download("/".join(parts[:2]), allow_patterns=wanted))
    except Exception as error:  # the hub's client raises a dozen kinds
        raise VerifierError(
            f"The weights of {owner!r} must load from {checkpoint!r} but: {type(error).__name__}; check the "
            f"name and the network, or download them elsewhere and give '{owner}:checkpoint=PATH'."
        ) from error
    found = sorted(root.rglob(inside)) if inside else [root]
    folders = [folder for folder in found if (folder / "config.json").is_file()]
    if not folders:
        raise VerifierError(
            f"The weights of {owner!r} must lie beside a config.json but {checkpoint!r} has none; check the "
            "name of the folder."
        )
    return folders[0]
