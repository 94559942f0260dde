"""The published masked-token models, by name and where their weights are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_vision.config import ModelOptions
from tts_vision.pipelines.published import parts_of, placed
from tts_vision.registry import register

if TYPE_CHECKING:
    from tts_vision.pipelines.tokens.showo import ShowoPipeline

HUBS = {"show-o": "showlab/show-o", "show-o-512": "showlab/show-o-512x512"}
REPOSITORIES = {
    "showlab/show-o": "show-o",
    "showlab/show-o-w-clip-vit": "show-o",
    "showlab/show-o-512x512": "show-o-512",
    "showlab/show-o-w-clip-vit-512x512": "show-o-512",
    "showlab/show-o-512x512-wo-llava-tuning": "show-o-512",
}


def load_showo(name: str, *, options: ModelOptions | None = None) -> ShowoPipeline:
    """Show-o, from its published checkpoints.

    Args:
        name: Such as ``show-o:/models/show-o``, a folder, file or hub id; or with each part named,
            ``show-o:checkpoint=...,image_tokenizer=...,tokenizer=...``. By default the authors' repositories.
        options: Precision and device.

    Raises:
        PipelineError: If a file is missing or does not fit.
        ConfigError: If the name has a part that is none.
    """
    from tts_vision.pipelines.tokens.loading import IMAGE_TOKENIZER, TOKENIZER
    from tts_vision.pipelines.tokens.loading import load_showo as load

    model, parts = parts_of(name, ("checkpoint", "image_tokenizer", "tokenizer"))
    return load(
        model,
        parts.get("checkpoint", HUBS[model]),
        tokenizer=parts.get("tokenizer", TOKENIZER),
        image_tokenizer=parts.get("image_tokenizer", IMAGE_TOKENIZER),
        **placed(options),
    )


def load_folder(path: str, *, options: ModelOptions | None = None) -> ShowoPipeline:
    """A masked-token model in a folder that `tts_vision.pipelines.tokens.folder.save_pipeline` wrote.

    Args:
        path: The folder.
        options: Precision and device.

    Raises:
        PipelineError: If a file is missing or does not fit.
        ConfigError: If an option is set that it does not have.
    """
    from tts_vision.pipelines.tokens.folder import load_pipeline

    where = placed(options)
    return load_pipeline(Path(path).expanduser(), dtype=where["dtype"]).to(where["device"])


def token_model(name_or_path: str) -> Any | None:
    """The loader of a folder or hub id that holds a masked-token model; None for any other."""
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        name = REPOSITORIES.get(name_or_path)
        return None if name is None else partial(_load_path, name)
    if _values(folder / "pipeline.json").get("family") == "masked":
        return load_folder
    tokens = _values(folder / "config.json").get("num_vq_tokens", 0)
    name = {256: "show-o", 1024: "show-o-512"}.get(tokens)
    return None if name is None else partial(_load_path, name)


def _load_path(name: str, path: str, *, options: ModelOptions | None = None) -> ShowoPipeline:
    return load_showo(f"{name}:{path}", options=options)


def _values(path: Path) -> dict[str, Any]:
    """The values in a JSON file; none if there is no such file."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


_PAPER = "Show-o (Xie et al. 2024, arXiv:2408.12528)"
_LICENCE = "Apache-2.0 (code)"
register(
    "model",
    "show-o",
    paper=_PAPER,
    notes={
        "takes": "show-o:PATH, a folder, file or hub id",
        "weights": HUBS["show-o"],
        "licence": _LICENCE,
    },
)(load_showo)
register(
    "model",
    "show-o-512",
    paper=_PAPER,
    notes={
        "takes": "show-o-512:PATH, a folder, file or hub id",
        "weights": HUBS["show-o-512"],
        "licence": _LICENCE,
    },
)(load_showo)
