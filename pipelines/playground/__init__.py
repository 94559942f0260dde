"""The bundled playground: a procedural world, its exact checker, and a small pipeline that draws it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import CogView4Pipeline

# Little guidance: single images err about one time in five, which leaves a search something to do. Stronger
# guidance (3 to 4) is right a few percent more often; see `measure`.
DEFAULTS = {"num_inference_steps": 13, "guidance_scale": 1.5}
FLOW_DEFAULTS = {"num_inference_steps": 16, "guidance_scale": 2.0}  # of playground-discrete-flow
WEIGHTS_VARIABLE = "TTS_VISION_PLAYGROUND_WEIGHTS"


def weights_path(part: str = "flow") -> Path:
    """Where the trained weights lie: beside this file, or in the folder that an environment variable names.

    Args:
        part: "flow" for the diffusers pipeline, "var", "tokens" and "video" for the other models, "clip",
            "judge", "parm" and "motion_judge" for the verifiers.

    Returns:
        An existing folder.

    Raises:
        FileNotFoundError: There is none.
    """
    root = Path(os.environ.get(WEIGHTS_VARIABLE, Path(__file__).with_name("weights")))
    path = root / part
    if not path.is_dir():
        raise FileNotFoundError(
            f"The playground's {part} weights must lie in {path}, which does not exist. Install the package "
            f"with its data, train them with the scripts of {__name__} (train, train_judge, train_parm, "
            f"train_video), or set {WEIGHTS_VARIABLE} to a folder that holds them."
        )
    return path


def load_pipeline(dtype: torch.dtype | None = None, device: str = "cpu") -> CogView4Pipeline:
    """Loads the text-to-image pipeline of the playground.

    Args:
        dtype: Precision of the weights, float32 by default.
        device: Where to put it.

    Returns:
        An ordinary diffusers pipeline; call it with the numbers of `DEFAULTS`.
    """
    import torch
    from diffusers import (
        AutoencoderTiny,
        CogView4Pipeline,
        CogView4Transformer2DModel,
        FlowMatchEulerDiscreteScheduler,
    )
    from transformers import AutoTokenizer, GlmModel

    folder = weights_path("flow")
    # Part by part: the pipeline's own loader warns that the autoencoder is the tiny class.
    pipe = CogView4Pipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=GlmModel.from_pretrained(folder / "text_encoder"),
        vae=AutoencoderTiny.from_pretrained(folder / "vae"),
        transformer=CogView4Transformer2DModel.from_pretrained(folder / "transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    )
    return pipe.to(device, dtype or torch.float32)
