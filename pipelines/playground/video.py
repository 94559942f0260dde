"""The network of `playground-video`: the image model's transformer on a strip of frames.

The four frames of a chunk lie side by side in one wide latent image, so that the joint attention of the
image model sees all of them, and all of its weights are kept; rotary positions inside a frame are those of
the image model. The previous chunk and its last frame come in further input channels, whose weights start at
zero.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, CogView4Transformer2DModel
from torch import Tensor, nn
from transformers import GlmConfig, GlmModel, PreTrainedTokenizerFast

from tts_vision.errors import PipelineError
from tts_vision.pipelines.module_folders import CONFIG, WEIGHTS, write_settings
from tts_vision.pipelines.playground import motion, weights_path, world
from tts_vision.pipelines.playground.tokenizer import build_tokenizer

CHANNELS, SIDE = 4, 8  # of a latent frame
MAX_TOKENS = 20
# noise; the previous chunk; its last frame; whether there is one; the place of the frame in the chunk
IN_CHANNELS = 3 * CHANNELS + 1 + motion.CHUNK


def build_motion_tokenizer() -> PreTrainedTokenizerFast:
    """The playground's tokenizer with words of motion behind its own; see `tokenizer.build_tokenizer`."""
    return build_tokenizer(more=motion.WORDS, length=MAX_TOKENS)


@dataclass
class VideoNetwork:
    """The trained parts of the model: transformer and text encoder."""

    transformer: CogView4Transformer2DModel
    text_encoder: GlmModel

    def modules(self) -> dict[str, nn.Module]:
        """Both, by name."""
        return {"transformer": self.transformer, "text_encoder": self.text_encoder}


def inflated(transformer: CogView4Transformer2DModel, text_encoder: GlmModel, seed: int) -> VideoNetwork:
    """A network for chunks of frames that starts from an image model.

    Args:
        transformer: Of the image model.
        text_encoder: Of the image model, whose words come first in the vocabulary of motion.
        seed: Seed of the embeddings of new words.
    """
    settings = dict(transformer.config) | {
        "in_channels": IN_CHANNELS,
        "rope_axes_dim": (
            transformer.config.rope_axes_dim[0],
            transformer.config.rope_axes_dim[1] * motion.CHUNK,
        ),
    }
    network = empty_network(
        {key: value for key, value in settings.items() if not key.startswith("_")},
        text_encoder.config.to_dict() | {"vocab_size": len(build_motion_tokenizer())},
    )
    weights = dict(transformer.state_dict())
    first = "patch_embed.proj.weight"
    kept = weights[first]
    weights[first] = torch.zeros(len(kept), IN_CHANNELS * transformer.config.patch_size**2).to(kept)
    weights[first][:, : kept.shape[1]] = kept
    network.transformer.load_state_dict(weights)
    words = dict(text_encoder.state_dict())
    known = words["embed_tokens.weight"]
    generator = torch.Generator().manual_seed(seed)
    more = network.text_encoder.config.vocab_size - len(known)
    new = known.std() * torch.randn(more, known.shape[1], generator=generator)
    words["embed_tokens.weight"] = torch.cat([known, new.to(known)])
    network.text_encoder.load_state_dict(words)
    return network


def empty_network(transformer: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> VideoNetwork:
    """A network of two configurations, whose weights are to be loaded."""
    return VideoNetwork(
        CogView4Transformer2DModel(**transformer), GlmModel(GlmConfig.from_dict(dict(text_encoder)))
    )


# --------------------------------------------------------------------------------------------- one evaluation


def as_strip(frames: Tensor) -> Tensor:
    """Frames `(b, c, t, h, w)` side by side: `(b, c, h, t * w)`."""
    return frames.transpose(2, 3).flatten(3)


def as_frames(strip: Tensor) -> Tensor:
    """The frames of a strip `(b, c, h, t * w)`: `(b, c, t, h, w)`."""
    return strip.unflatten(3, (motion.CHUNK, -1)).transpose(2, 3)


def conditioned(noisy: Tensor, previous: Tensor, begun: Tensor) -> Tensor:
    """The input of the transformer.

    Args:
        noisy: The chunk being denoised, `(b, 4, 4, 8, 8)`.
        previous: The chunk before it, of the same shape; anything where there is none.
        begun: Whether there is one, 0 or 1, shape `(b,)`.

    Returns:
        A strip, `(b, 17, 8, 32)`.
    """
    flag = begun.view(-1, 1, 1, 1, 1).to(noisy)
    previous = previous * flag
    last = previous[:, :, -1:].expand_as(previous)
    flags = flag.expand(-1, 1, *noisy.shape[2:])
    place = torch.eye(motion.CHUNK, device=noisy.device, dtype=noisy.dtype)[None, :, :, None, None]
    places = place.expand(len(noisy), -1, -1, *noisy.shape[3:])
    return as_strip(torch.cat([noisy, previous, last, flags, places], 1))


def rotary(transformer: CogView4Transformer2DModel, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The rotary positions of a strip, computed once: on the CPU, which the transformer would wait for."""
    cosine, sine = transformer.rope(torch.empty(1, 1, SIDE, SIDE * motion.CHUNK))
    return cosine.to(device), sine.to(device)


def velocity(
    transformer: nn.Module,
    strip: Tensor,
    time: Tensor,
    text: Tensor,
    positions: tuple[Tensor, Tensor],
) -> Tensor:
    """The predicted velocity, from data to noise, `(b, 4, 4, 8, 8)`.

    Args:
        transformer: A `CogView4Transformer2DModel`, or what compiles it.
        strip: Of `conditioned`.
        time: 0 for data to 1 for noise, shape `(b,)`.
        text: Of `encoded`, `(b, t, d)`.
        positions: Of `rotary`.
    """
    whole = torch.full((len(strip), 2), float(world.SIZE), device=strip.device, dtype=text.dtype)
    sizes = (whole, whole, torch.zeros_like(whole))
    found = transformer(strip, text, 1000 * time, *sizes, return_dict=False, image_rotary_emb=positions)[0]
    return as_frames(found)


def encoded(text_encoder: GlmModel, ids: Tensor) -> Tensor:
    """Captions `(b, 20)`, padded on the left, as the transformer takes them: `(b, 20, d)`."""
    return text_encoder(ids, output_hidden_states=True).hidden_states[-2]


def token_ids(texts: Sequence[str]) -> Tensor:
    """Token ids of captions, `(b, 20)`."""
    words = build_motion_tokenizer()(
        list(texts), padding="max_length", max_length=MAX_TOKENS, return_tensors="pt"
    )
    return words.input_ids


@dataclass
class Guided:
    """The velocity with classifier-free guidance, of chunks that continue given ones.

    Attributes:
        network: Transformer and text encoder.
        guidance: Scale; 1 or less evaluates the prompt alone.
        positions: Of `rotary`.
    """

    network: VideoNetwork
    guidance: float
    positions: tuple[Tensor, Tensor]

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Encoded prompts, with guidance behind as many empty ones: `(1 or 2, b, 20, d)`."""
        texts = [*[""] * len(prompts), *prompts] if self.guidance > 1 else list(prompts)
        device = self.network.transformer.device
        return encoded(self.network.text_encoder, token_ids(texts).to(device)).unflatten(
            0, (-1, len(prompts))
        )

    @torch.no_grad()
    def euler(
        self,
        texts: Tensor,
        latents: Tensor,
        previous: Tensor | None,
        steps: int,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Euler steps of a chunk.

        Args:
            texts: Of `texts`, of one prompt or of one for each row.
            latents: Noise, or what earlier steps left, `(b, 4, 4, 8, 8)`.
            previous: The chunk before, of the same shape; None for the first chunk.
            steps: Of the whole chunk.
            start: Steps that are done.
            stop: Steps that are done afterwards, all by default.

        Returns:
            Latents after these steps, and the x0 estimate of the last of them.
        """
        rows = len(latents)
        branches = texts.expand(-1, rows, -1, -1).flatten(0, 1)
        begun = torch.full((rows,), float(previous is not None), device=latents.device)
        before = torch.zeros_like(latents) if previous is None else previous
        estimate = latents
        for step in range(start, steps if stop is None else stop):
            time, later = 1 - step / steps, 1 - (step + 1) / steps
            strip = conditioned(latents, before, begun).repeat(len(texts), 1, 1, 1)
            times = torch.full((len(strip),), time, device=strip.device)
            strip = strip.to(branches.dtype)
            found = velocity(self.network.transformer, strip, times, branches, self.positions).float()
            if len(texts) == 2:
                empty, asked = found.chunk(2)
                found = empty + self.guidance * (asked - empty)
            estimate = latents - time * found
            latents = latents + (later - time) * found
        return latents, estimate


# ------------------------------------------------------------------------------------------------ as a folder


def save_network(network: VideoNetwork, folder: Path, defaults: Mapping[str, Any], image: nn.Module) -> None:
    """Writes a network in half precision, without the weights that are those of the image model.

    Args:
        network: The network.
        folder: Where to.
        defaults: Settings of a plain call.
        image: The transformer of the image model.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    shared = {key: value.half() for key, value in image.state_dict().items()}
    kept, left = {}, {}
    for part, module in network.modules().items():
        for key, value in module.state_dict().items():
            value = value.detach().cpu().half().contiguous()
            if part == "transformer" and key in shared and torch.equal(shared[key].cpu(), value):
                left[f"{part}.{key}"] = shared[key].cpu()  # a zero may have another sign
            else:
                kept[f"{part}.{key}"] = value
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    transformer = {k: v for k, v in network.transformer.config.items() if not k.startswith("_")}
    settings = {
        "transformer": transformer,
        "text_encoder": network.text_encoder.config.to_diff_dict(),
        "shared": {"weights": sorted(left), "sha256": _digest(left)},
        "defaults": dict(defaults),
    }
    write_settings(folder / CONFIG, settings)


def load_network(folder: Path) -> tuple[VideoNetwork, dict[str, Any]]:
    """Reads a folder of `save_network`, and the weights that are the image model's from there.

    Args:
        folder: The folder.

    Returns:
        The network in float32, and the settings of a plain call.

    Raises:
        PipelineError: If a file is missing or does not fit, or the image model is another one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads((folder / CONFIG).read_text())
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise PipelineError(
            f"A video model of the playground must have {CONFIG} and {WEIGHTS} but {str(folder)!r} cannot be "
            f"read: {error}; install or train it again."
        ) from error
    names = settings["shared"]["weights"]
    if names:
        image = load_file(weights_path("flow") / "transformer" / "diffusion_pytorch_model.safetensors")
        shared = {name: image[key] for name in names if (key := name.split(".", 1)[1]) in image}
        if _digest(shared) != settings["shared"]["sha256"]:
            raise PipelineError(
                f"The video model in {str(folder)!r} shares weights with the image model that it started "
                f"from, but {str(weights_path('flow'))!r} holds another one; train the video model again by "
                "'python -m tts_vision.pipelines.playground.train_video'."
            )
        weights |= shared
    network = empty_network(settings["transformer"], settings["text_encoder"])
    for part, module in network.modules().items():
        own = {key.split(".", 1)[1]: value for key, value in weights.items() if key.startswith(f"{part}.")}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise PipelineError(
                f"{str(folder / WEIGHTS)!r} must hold the weights of its {CONFIG} but: "
                f"{str(error).splitlines()[0]}; install or train it again."
            ) from error
        module.eval().requires_grad_(False)
    return network, settings["defaults"]


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_autoencoder() -> AutoencoderTiny:
    """The image model's autoencoder, which serves every frame."""
    vae = AutoencoderTiny.from_pretrained(weights_path("flow") / "vae", torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)


def load_image_model() -> tuple[CogView4Transformer2DModel, GlmModel]:
    """Transformer and text encoder of the image model, in float32."""
    folder = weights_path("flow")
    transformer = CogView4Transformer2DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32
    )
    return transformer, GlmModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
