"""Loads a diffusers pipeline from the hub or a folder, ready to be searched over."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_vision.config import ModelOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.registry import register

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


@register("model", "diffusers", notes={"takes": "any diffusers checkpoint: a hub id or a folder"})
def load(name_or_path: str, *, options: ModelOptions | None = None) -> DiffusionPipeline:
    """Any diffusers checkpoint, by hub id or folder.

    Args:
        name_or_path: A hub id, such as ``black-forest-labs/FLUX.1-dev``, or a folder that
            ``save_pretrained`` wrote.
        options: Precision, device, adapters.

    Raises:
        PipelineError: If it cannot be loaded.
        ConfigError: If an option does not fit the model.
    """
    from diffusers import DiffusionPipeline

    options = options or ModelOptions()
    device = default_device(options)
    if Path(name_or_path).is_file():
        raise PipelineError(
            f"A model must be a hub id or a diffusers folder but {name_or_path!r} is a single file; load "
            "it with its pipeline class's from_single_file, and pass the pipeline to tts_vision.search."
        )
    settings = {"variant": options.variant, "revision": options.revision}
    try:
        with warnings.catch_warnings():
            # diffusers renames torch_dtype to dtype; only the old name works with all versions we support
            warnings.simplefilter("ignore", FutureWarning)
            pipe = DiffusionPipeline.from_pretrained(
                name_or_path,
                torch_dtype=default_dtype(options, device),
                **{key: value for key, value in settings.items() if value is not None},
            )
    except Exception as error:  # every library beneath raises its own kinds
        reason = str(error).strip().splitlines()
        raise PipelineError(
            f"A model must be a hub id or a diffusers folder but {name_or_path!r} could not be loaded: "
            f"{type(error).__name__}: {reason[0] if reason else ''}. Check the name, the network, and that "
            "all files are complete."
        ) from error
    return prepare(pipe, options, device)


def prepare(pipe: Any, options: ModelOptions, device: str) -> Any:
    """Puts `options` into effect on a loaded pipeline: scheduler, adapters, attention, device, compilation.

    Raises:
        ConfigError: If the pipeline does not support one of them.
    """
    import diffusers

    if options.scheduler is not None:
        scheduler = getattr(diffusers, options.scheduler, None)
        if scheduler is None or not hasattr(scheduler, "set_timesteps"):
            raise ConfigError(
                f"scheduler must name a diffusers scheduler class but got {options.scheduler!r}; "
                "for example DPMSolverMultistepScheduler."
            )
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    for i, lora in enumerate(options.lora):
        if not hasattr(pipe, "load_lora_weights"):
            raise ConfigError(
                f"lora needs a pipeline that takes LoRA weights but {type(pipe).__name__} does not."
            )
        pipe.load_lora_weights(lora, adapter_name=f"lora_{i}")
    if len(options.lora) > 1:
        pipe.set_adapters([f"lora_{i}" for i in range(len(options.lora))])
    if options.attention is not None:
        _set_attention(pipe, options.attention)
    if options.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif options.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    if options.preview_vae is not None:
        tiny = diffusers.AutoencoderTiny.from_pretrained(options.preview_vae, torch_dtype=pipe.dtype)
        pipe.tts_vision_preview_vae = tiny.to(device)
    if options.compile:
        for name in ("unet", "transformer"):
            if getattr(pipe, name, None) is not None:
                getattr(pipe, name).compile()
    return pipe


def check_only_placed(options: ModelOptions) -> None:
    """Checks that `options` ask for no more than what visual autoregressive models have: dtype and device.

    Raises:
        ConfigError: If they do.
    """
    given = options.model_dump(exclude_defaults=True).keys() - {"dtype", "device"}
    if given:
        raise ConfigError(
            "A visual autoregressive model takes the options dtype and device but got "
            f"{', '.join(sorted(given))}; leave that out."
        )


def default_device(options: ModelOptions) -> str:
    """The device asked for, or the best there is."""
    import torch

    if options.device is not None:
        return options.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def default_dtype(options: ModelOptions, device: str) -> torch.dtype:
    """The precision asked for, or what suits the device."""
    import torch

    name = options.dtype or ("float32" if device == "cpu" else "float16" if device == "mps" else "bfloat16")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _set_attention(pipe: Any, backend: str) -> None:
    """Chooses the attention back end, by the older or the newer of diffusers' ways."""
    try:
        if backend == "xformers" and hasattr(pipe, "enable_xformers_memory_efficient_attention"):
            pipe.enable_xformers_memory_efficient_attention()
            return
        denoiser = getattr(pipe, "transformer", None) or pipe.unet
        denoiser.set_attention_backend(backend)
    except (ImportError, ModuleNotFoundError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"attention must be a back end that is installed and that the model supports but {backend!r} "
            f"failed: {error}. Install it (for xformers: pip install 'tts-vision[xformers]') or leave "
            "--attention out."
        ) from error
