"""Models that draw and understand images, by name: Janus by transformers, and FUDOKI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_vision.config import ModelOptions
from tts_vision.errors import ConfigError, PipelineError
from tts_vision.registry import register

if TYPE_CHECKING:
    from tts_vision.pipelines.tokens.fudoki import FudokiPipeline
    from tts_vision.pipelines.tokens.janus import JanusPipeline

JANUS, FUDOKI = "deepseek-community/Janus-Pro-1B", "LucasJinWang/FUDOKI"


@register(
    "model",
    "janus",
    paper="Janus-Pro (Chen et al. 2025, arXiv:2501.17811)",
    notes={
        "takes": "janus:PATH, a folder or hub id in transformers' format",
        "weights": JANUS,
        "licence": "DeepSeek model licence, code MIT",
    },
)
def load_janus(name: str = "janus", *, options: ModelOptions | None = None) -> JanusPipeline:
    """Janus or Janus-Pro, as transformers has it.

    Args:
        name: ``janus:PATH``, where the path is a folder or a hub id; without one the 1B of Janus-Pro.
        options: Precision and device.

    Raises:
        PipelineError: If it cannot be loaded, or is another model.
        ConfigError: If an option is set that it does not have.
    """
    path = name.partition(":")[2] or JANUS
    from transformers import AutoProcessor, JanusForConditionalGeneration

    from tts_vision.pipelines.tokens.janus import JanusPipeline

    dtype, device = _placed(options)
    try:
        model = JanusForConditionalGeneration.from_pretrained(path, dtype=dtype)
        processor = AutoProcessor.from_pretrained(path)
    except Exception as error:  # every library beneath raises its own kinds
        raise _unreadable("Janus", path, error) from error
    if not hasattr(processor, "apply_chat_template") or not getattr(processor, "chat_template", None):
        raise PipelineError(
            f"A Janus needs a processor with a chat template but that of {path!r} has none; give a folder or "
            f"id in transformers' format, such as {JANUS}."
        )
    placed: Any = model.eval().requires_grad_(False)
    return JanusPipeline(placed.to(device), processor, Path(path).name)


@register(
    "model",
    "fudoki",
    paper="FUDOKI (Wang et al. 2025, arXiv:2505.20147)",
    notes={"takes": "fudoki:PATH, a folder or hub id", "weights": FUDOKI, "licence": "Apache-2.0 (code)"},
)
def load_fudoki(name: str = "fudoki", *, options: ModelOptions | None = None) -> FudokiPipeline:
    """FUDOKI, from its published checkpoint.

    Args:
        name: ``fudoki:PATH``, where the path is a folder or a hub id; without one the authors' repository.
        options: Precision and device.

    Raises:
        PipelineError: If it cannot be loaded, or a key does not fit.
        ConfigError: If an option is set that it does not have.
    """
    from tts_vision.pipelines.tokens.fudoki_loading import load_fudoki as load

    dtype, device = _placed(options)
    return load(name.partition(":")[2] or FUDOKI, dtype=dtype, device=device)


def unified_model(name_or_path: str) -> Any | None:
    """The loader of a folder or hub id that holds a model of this module; None for any other.

    A hub is asked only about ids that name such a model.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        file = folder / "config.json"
        if not file.is_file() or (folder / "model_index.json").exists():
            return None
        try:
            kind = json.loads(file.read_text()).get("model_type")
        except (OSError, ValueError, AttributeError):
            return None
        if kind == "multi_modality" and (folder / "image_embedding.pt").is_file():
            return load_fudoki
        return load_janus if kind == "janus" else None
    if name_or_path == FUDOKI:
        return load_fudoki
    owner, _, model = name_or_path.partition("/")
    return load_janus if owner == "deepseek-community" and model.lower().startswith("janus") else None


def _placed(options: ModelOptions | None) -> tuple[Any, str]:
    """Precision and device.

    Raises:
        ConfigError: If another option is set.
    """
    from tts_vision.pipelines.loading import default_device, default_dtype

    options = options or ModelOptions()
    given = options.model_dump(exclude_defaults=True).keys() - {"dtype", "device"}
    if given:
        raise ConfigError(
            "A model of Janus or FUDOKI takes the options dtype and device but got "
            f"{', '.join(sorted(given))}; leave that out."
        )
    device = default_device(options)
    return default_dtype(options, device), device


def _unreadable(owner: str, path: str, error: Exception) -> PipelineError:
    reason = (str(error).strip() or type(error).__name__).split("\n", 1)[0].rstrip(".")
    return PipelineError(
        f"{owner} must load from a folder or hub id in transformers' format but {path!r} does not: {reason}; "
        "check the name, the network, and that all files are complete."
    )
