"""A ViCLIP of random weights, saved as the published one is."""

from pathlib import Path

import torch
from torch import Tensor

WIDTH, HEADS, TEXT_WIDTH, TEXT_HEADS, LAYERS, PATCH, GRID, FRAMES, CONTEXT, LENGTH = (
    128,
    2,
    64,
    1,
    2,
    8,
    4,
    8,
    32,
    24,
)


def viclip_state(seed: int = 0) -> dict[str, Tensor]:
    """Weights by their published names, far enough from zero that each of them matters."""
    shapes: dict[str, tuple[int, ...]] = {
        "temp": (),
        "vision_encoder.class_embedding": (WIDTH,),
        "vision_encoder.positional_embedding": (GRID**2 + 1, WIDTH),
        "vision_encoder.temporal_positional_embedding": (1, FRAMES, WIDTH),
        "vision_encoder.proj": (WIDTH, LENGTH),
        "vision_encoder.conv1.weight": (WIDTH, 3, 1, PATCH, PATCH),
        "text_encoder.positional_embedding": (CONTEXT, TEXT_WIDTH),
        "text_encoder.text_projection": (TEXT_WIDTH, LENGTH),
        "text_encoder.token_embedding.weight": (49408, TEXT_WIDTH),
    }
    norms = ["vision_encoder.ln_pre", "vision_encoder.ln_post", "text_encoder.ln_final"]
    for tower, width in (("vision_encoder", WIDTH), ("text_encoder", TEXT_WIDTH)):
        for layer in range(LAYERS):
            block = f"{tower}.transformer.resblocks.{layer}"
            norms += [f"{block}.ln_1", f"{block}.ln_2"]
            for name, rows, columns in (
                ("attn.in_proj_", 3 * width, width),
                ("attn.out_proj.", width, width),
                ("mlp.c_fc.", 4 * width, width),
                ("mlp.c_proj.", width, 4 * width),
            ):
                shapes |= {f"{block}.{name}weight": (rows, columns), f"{block}.{name}bias": (rows,)}
    for norm in norms:
        width = TEXT_WIDTH if norm.startswith("text") else WIDTH
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) * 0.15 for name, shape in shapes.items()}
    state["vision_encoder.temporal_positional_embedding"] *= 20  # so that the order of frames shows
    return state


def tiny_viclip(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """The checkpoint in a folder, as the published file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "ViClip-InternVid-10M-FLT.pth"
    torch.save({"model": viclip_state() if state is None else state}, file)
    return file
