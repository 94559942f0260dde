"""The bundled playground as a model that the command line and `search` know by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from tts_vision.config import ModelOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.registry import register

if TYPE_CHECKING:
    from diffusers import CogView4Pipeline

    from tts_vision.pipelines.playground.video_pipeline import PlaygroundVideo
    from tts_vision.pipelines.tokens.showo import ShowoPipeline
    from tts_vision.pipelines.tokens.showo_flow import ShowoFlow
    from tts_vision.pipelines.var.pipeline import InfinityPipeline

Pipeline = TypeVar("Pipeline")


@register(
    "model",
    "playground",
    verifier="playground_clip",
    features="playground_features",
    notes={"draws": "up to four coloured shapes on plain ground, 64x64, on a CPU in seconds"},
)
def load_playground(name: str = "playground", *, options: ModelOptions | None = None) -> CogView4Pipeline:
    """The bundled text-to-image model: a small rectified flow over coloured shapes.

    Args:
        name: What it was called.
        options: Precision and device; float32 on the CPU by default, where it is fast enough.

    Raises:
        PipelineError: If its weights are missing or damaged.
        ConfigError: If the name goes on, or an option does not fit.
    """
    _check_name(name, "playground")
    import torch

    from tts_vision.pipelines.loading import prepare
    from tts_vision.pipelines.playground import DEFAULTS, load_pipeline
    from tts_vision.pipelines.playground.quiet import quietly

    options = options or ModelOptions()
    device = options.device or "cpu"
    try:
        with quietly():
            pipe = load_pipeline(dtype=getattr(torch, options.dtype or "float32"))
    except Exception as error:
        raise _damaged(error) from error
    pipe.tts_vision_defaults = dict(DEFAULTS)
    return prepare(pipe, options, device)


@register(
    "model",
    "playground-var",
    verifier="playground_clip",
    features="playground_features",
    paper="Infinity (Han et al. 2024)",
    notes={"draws": "what the playground draws, scale by scale; 6 scales, 55 tokens"},
)
def load_playground_var(
    name: str = "playground-var", *, options: ModelOptions | None = None
) -> InfinityPipeline:
    """The bundled visual autoregressive model: a small Infinity over coloured shapes.

    Args:
        name: What it was called.
        options: Precision and device; float32 on the CPU by default, where it is fast enough.

    Raises:
        PipelineError: If its weights are missing or damaged.
        ConfigError: If the name goes on, or another option is set.
    """
    from tts_vision.pipelines.var.folder import load_pipeline

    return _placed(name, "playground-var", "var", load_pipeline, options)


@register(
    "model",
    "playground-masked",
    verifier="playground_parm",
    features="playground_features",
    paper="Show-o (Xie et al. 2024)",
    notes={"draws": "what the playground draws, by unmasking 64 tokens in 12 steps"},
)
def load_playground_masked(
    name: str = "playground-masked", *, options: ModelOptions | None = None
) -> ShowoPipeline:
    """The bundled masked-token model: a small Show-o over coloured shapes.

    Args:
        name: What it was called.
        options: Precision and device; float32 on the CPU by default, where it is fast enough.

    Raises:
        PipelineError: If its weights are missing or damaged.
        ConfigError: If the name goes on, or another option is set.
    """
    from tts_vision.pipelines.tokens.folder import load_pipeline

    return _placed(name, "playground-masked", "tokens", load_pipeline, options)


@register(
    "model",
    "playground-discrete-flow",
    verifier="playground_judge",
    features="playground_features",
    paper="FUDOKI (Wang et al. 2025)",
    notes={"draws": "what the playground draws, by jumps of 64 tokens in 16 steps"},
)
def load_playground_discrete_flow(
    name: str = "playground-discrete-flow", *, options: ModelOptions | None = None
) -> ShowoFlow:
    """The bundled discrete flow: the network of `playground-masked`, which learnt both.

    Args:
        name: What it was called.
        options: Precision and device; float32 on the CPU by default, where it is fast enough.

    Raises:
        PipelineError: If its weights are missing or damaged.
        ConfigError: If the name goes on, or another option is set.
    """
    from tts_vision.pipelines.playground import FLOW_DEFAULTS
    from tts_vision.pipelines.tokens.folder import load_pipeline
    from tts_vision.pipelines.tokens.showo_flow import ShowoFlow

    pipe = _placed(name, "playground-discrete-flow", "tokens", load_pipeline, options)
    return ShowoFlow.of(pipe, FLOW_DEFAULTS, "playground-discrete-flow")


@register(
    "model",
    "playground-video",
    verifier="playground_motion_judge",
    features="playground_features",
    notes={"draws": "one or two shapes that move, grow, shrink or stand still; 16 frames in 4 chunks"},
)
def load_playground_video(
    name: str = "playground-video", *, options: ModelOptions | None = None
) -> PlaygroundVideo:
    """The bundled autoregressive text-to-video model: the flow of `playground`, inflated to chunks of frames.

    Args:
        name: What it was called.
        options: Precision and device; float32 on the CPU by default, where it is fast enough.

    Raises:
        PipelineError: If its weights are missing or damaged.
        ConfigError: If the name goes on, or another option is set.
    """
    from tts_vision.pipelines.playground.video_pipeline import load_pipeline

    return _placed(name, "playground-video", "video", load_pipeline, options)


def _placed(
    name: str, own: str, part: str, load: Callable[..., Pipeline], options: ModelOptions | None
) -> Pipeline:
    """A bundled model of the toolkit's own classes, in the place and the precision of the options.

    Args:
        name: What it was called.
        own: Its name.
        part: Of the playground's weights.
        load: Reads a folder.
        options: Precision and device.
    """
    _check_name(name, own)
    import torch

    from tts_vision.pipelines.loading import check_only_placed, place
    from tts_vision.pipelines.playground import weights_path
    from tts_vision.pipelines.playground.quiet import quietly

    options = options or ModelOptions()
    check_only_placed(options)
    try:
        with quietly():
            pipe = load(weights_path(part), dtype=getattr(torch, options.dtype or "float32"))
    except Exception as error:
        raise _damaged(error, "train_video" if part == "video" else "train") from error
    place(pipe, options.device or "cpu")
    return pipe


def _check_name(name: str, own: str) -> None:
    """Refuses anything behind a colon: nothing of a bundled model can be chosen there."""
    if name != own:
        raise ConfigError(
            f"A bundled model is named without more but got {name!r}; write '{own}', or set its options with "
            "--set model.KEY=VALUE."
        )


def _damaged(error: Exception, script: str = "train") -> PipelineError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return PipelineError(
        f"The playground's weights must be whole but: {reason[0]}; reinstall tts-vision, or train them "
        f"again with 'python -m tts_vision.pipelines.playground.{script}'."
    )
