"""Loads a diffusers pipeline from the hub or a folder, ready to be searched over."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_vision.config import ModelOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.hub import out_of_reach
from tts_vision.registry import register

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


@register("model", "diffusers", notes={"takes": "any diffusers checkpoint: a hub id or a folder"})
def load(name_or_path: str, *, options: ModelOptions | None = None) -> DiffusionPipeline:
    """Any diffusers checkpoint, by hub id or folder; also a Janus, FUDOKI or Show-o.

    Args:
        name_or_path: A hub id, such as ``black-forest-labs/FLUX.1-dev``, or a folder that
            ``save_pretrained`` wrote.
        options: Precision, device, adapters.

    Raises:
        PipelineError: If it cannot be loaded.
        ConfigError: If an option does not fit the model.
    """
    from diffusers import DiffusionPipeline

    from tts_vision.pipelines.published_tokens import token_model
    from tts_vision.pipelines.unified_models import unified_model

    other = unified_model(name_or_path)
    if other is not None:
        return other(f":{name_or_path}", options=options)
    masked = token_model(name_or_path)
    if masked is not None:
        return masked(name_or_path, options=options)
    options = options or ModelOptions()
    device = default_device(options)
    if Path(name_or_path).is_file():
        raise PipelineError(
            f"A model must be a hub id or a diffusers folder but {name_or_path!r} is a single file; load "
            "it with its pipeline class's from_single_file, and pass the pipeline to tts_vision.search."
        )
    if options.device_map is not None and (options.offload != "none" or options.device is not None):
        raise ConfigError(
            f"device_map spreads a model over devices but got {options.device_map!r} beside device "
            f"{options.device!r} and offload {options.offload!r}; leave those out."
        )
    settings: dict[str, Any] = {"variant": options.variant, "revision": options.revision}
    settings["device_map"] = options.device_map
    silence = "" if Path(name_or_path).exists() else out_of_reach()
    if silence:
        settings["local_files_only"] = True  # else its client retries for most of a minute
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
        if silence:
            raise PipelineError(
                f"A model must be a folder, in the hub's cache, or on a hub that can be reached, but "
                f"{name_or_path!r} is not on this machine and the hub does not answer ({silence}); connect, "
                f"or run 'hf download {name_or_path}' elsewhere and give the folder as --model."
            ) from error
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
        pipe.scheduler = _replaced(pipe.scheduler, scheduler)
    for i, lora in enumerate(options.lora):
        if not hasattr(pipe, "load_lora_weights"):
            raise ConfigError(
                f"lora needs a pipeline that takes LoRA weights but {type(pipe).__name__} does not; leave "
                "--set model.lora out."
            )
        path = str(Path(lora).expanduser())
        with _told("lora", lora, "LoRA weights for this model: a file, a folder or a hub id"):
            pipe.load_lora_weights(path, adapter_name=f"lora_{i}")
    if len(options.lora) > 1:
        pipe.set_adapters([f"lora_{i}" for i in range(len(options.lora))])
    if options.attention is not None:
        _set_attention(pipe, options.attention)
    if options.offload != "none":
        with _told("offload", options.offload, "'none' without an accelerator"):
            if options.offload == "model":
                pipe.enable_model_cpu_offload(device=device)
            else:
                pipe.enable_sequential_cpu_offload(device=device)
    elif options.device_map is None:
        place(pipe, device)
    if options.preview_vae is not None:
        with _told("preview_vae", options.preview_vae, "a tiny autoencoder: a folder or a hub id"):
            tiny = diffusers.AutoencoderTiny.from_pretrained(options.preview_vae, torch_dtype=pipe.dtype)
        pipe.tts_vision_preview_vae = tiny.to(device)
    if options.compile:
        for name in ("unet", "transformer"):
            if getattr(pipe, name, None) is not None:
                getattr(pipe, name).compile()
    _tell_refusals(pipe)
    return pipe


def place(pipe: Any, device: str) -> None:
    """Moves a pipeline to a device.

    Raises:
        ConfigError: If there is no such device here.
    """
    with _told("device", device, "a device that torch has here, such as cpu, cuda or mps"):
        pipe.to(device)


@contextmanager
def _told(name: str, value: Any, rule: str) -> Iterator[None]:
    """Errors of the libraries in the block are told as a mistake in a setting."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # every library has its own kinds
        reason = " ".join(str(error).split()) or "no reason given"
        raise ConfigError(
            f"{name} must be {rule}, but {value!r} failed with {type(error).__name__}: {reason[:300]}; "
            "change it or leave it out."
        ) from error


def _replaced(own: Any, scheduler: Any) -> Any:
    """A scheduler of another class with the settings of a model's own.

    Raises:
        ConfigError: If one integrates a flow and the other does not; samples would be noise.
    """
    from tts_vision.pipelines.schedule import is_flow

    with _told("scheduler", scheduler.__name__, "a scheduler that takes the settings of the model's own"):
        found = scheduler.from_config(own.config)
    if is_flow(found) == is_flow(own):
        return found
    kind, remedy = (
        ("a flow", "FlowMatchEulerDiscreteScheduler")
        if is_flow(own)
        else ("noise or v", "DPMSolverMultistepScheduler")
    )
    raise ConfigError(
        f"scheduler must fit a model that predicts {kind}, as {type(own).__name__} does, but got "
        f"{scheduler.__name__}; use {remedy}, or leave it out."
    )


def _tell_refusals(pipe: Any) -> None:
    """Lets the check that a pipeline makes of its arguments raise errors that a user can act on."""
    check = getattr(pipe, "check_inputs", None)
    if callable(check):
        pipe.check_inputs = _telling(check, type(pipe).__name__)


def _telling(check: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(check)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return check(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"The arguments of the pipeline must be ones that {name} takes but: "
                f"{' '.join(str(error).split()).rstrip('.')}; change --steps, --guidance-scale, "
                "--negative-prompt or --set pipeline.KEY=VALUE."
            ) from error

    return checked


def check_only_placed(options: ModelOptions) -> None:
    """Checks that `options` ask for no more than what the toolkit's own models have: dtype and device.

    Raises:
        ConfigError: If they do.
    """
    given = options.model_dump(exclude_defaults=True).keys() - {"dtype", "device"}
    if given:
        raise ConfigError(
            "A model of the toolkit's own classes takes the options dtype and device but got "
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
