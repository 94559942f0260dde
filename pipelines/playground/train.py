"""Trains the playground: `python -m tts_vision.pipelines.playground.train --stage all`.

Draws a bank of images, then trains the autoencoder, the flow, the decoder once more and the CLIP; then two
tokenizers around that autoencoder, the visual autoregressive model on the first, and on the second a model
that is both a masked one and a discrete flow; and exports them. Each stage resumes from
its checkpoint in the work folder, so that the command may be killed and run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from tts_vision.pipelines.playground import train_tokenizers, train_tokens, train_var, weights_path
from tts_vision.pipelines.playground.tokenizer import build_tokenizer
from tts_vision.pipelines.playground.train_clip import build_clip, build_processor, train_clip
from tts_vision.pipelines.playground.train_flow import (
    FlowSize,
    build_flow,
    build_pipeline,
    encode_bank,
    train_flow,
)
from tts_vision.pipelines.playground.train_vae import sharpen_decoder, train_vae
from tts_vision.pipelines.playground.training import (
    Average,
    Bank,
    Budget,
    folder_size,
    load_bank,
    log,
    parts_of,
    tidy,
)
from tts_vision.pipelines.playground.training_options import chosen_stages, training_parser
from tts_vision.pipelines.tokens import folder as token_folder
from tts_vision.pipelines.var.folder import save_pipeline

STAGES = (
    "vae",
    "flow",
    "decoder",
    "clip",
    "scales",
    "var",
    "codes",
    "tokens",
    "export",
)


def export(work_dir: Path, output: Path, seed: int) -> None:
    """Writes what the checkpoints hold as folders that diffusers and transformers load, in half precision.

    Args:
        work_dir: Where the checkpoints lie; what has none is left out.
        output: Folder that gets `flow`, `var`, `tokens` and `clip`.
        seed: The seed of the training.
    """
    if (work_dir / "flow.pt").exists():
        transformer, text_encoder = build_flow(FlowSize(), seed + 2)
        average = Average({"transformer": transformer, "text_encoder": text_encoder})
        average.load_state_dict(parts_of(work_dir, "flow")["average"])
        average.copy_to("transformer", transformer)
        average.copy_to("text_encoder", text_encoder)
        vae = AutoencoderTiny.from_pretrained(work_dir / "vae")
        _take_sharper_decoder(work_dir, vae)
        pipe = build_pipeline(transformer, text_encoder, vae).to(torch.float16)
        pipe.save_pretrained(output / "flow", safe_serialization=True)
    if (work_dir / "var.pt").exists():
        coder = train_tokenizers.load_coder("scales", work_dir, autoencoder(work_dir))
        save_pipeline(train_var.trained(work_dir, coder), output / "var", dtype=torch.float16)
    if (work_dir / "tokens.pt").exists():
        coder = train_tokenizers.load_coder("codes", work_dir, autoencoder(work_dir))
        pipe = train_tokens.trained(work_dir, coder)
        token_folder.save_pipeline(pipe, output / "tokens", dtype=torch.float16)
    if (work_dir / "clip.pt").exists():
        model = build_clip(seed=seed + 3)
        average = Average({"clip": model})
        average.load_state_dict(parts_of(work_dir, "clip")["average"])
        average.copy_to("clip", model)
        model.half().save_pretrained(output / "clip")
        build_tokenizer("right").save_pretrained(output / "clip")
        build_processor().save_pretrained(output / "clip")
    tidy(output)
    size = {part.name: folder_size(part) for part in output.iterdir()}
    log(work_dir, f"export: {output}, bytes {size}")


def autoencoder(work_dir: Path) -> AutoencoderTiny:
    """The trained autoencoder with its sharper decoder; the bundled one where these stages did not run."""
    if not (work_dir / "vae").exists():
        return AutoencoderTiny.from_pretrained(weights_path("flow") / "vae", torch_dtype=torch.float32)
    vae = AutoencoderTiny.from_pretrained(work_dir / "vae")
    _take_sharper_decoder(work_dir, vae)
    return vae


def _take_sharper_decoder(work_dir: Path, vae: AutoencoderTiny) -> None:
    if (work_dir / "decoder.pt").exists():
        vae.decoder.load_state_dict(parts_of(work_dir, "decoder")["decoder"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen stages.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = training_parser(__doc__, STAGES, "playground_train", 0)
    parser.add_argument("--minutes-vae", type=float, default=12.0)
    parser.add_argument("--minutes-flow", type=float, default=46.0)
    parser.add_argument("--minutes-decoder", type=float, default=5.0)
    parser.add_argument("--minutes-clip", type=float, default=9.0)
    parser.add_argument("--minutes-scales", type=float, default=18.0)
    parser.add_argument("--minutes-var", type=float, default=75.0)
    parser.add_argument("--minutes-codes", type=float, default=12.0)
    parser.add_argument("--minutes-tokens", type=float, default=75.0)
    parser.add_argument("--bank-size", type=int, default=150_000, help="images to train on")
    parser.add_argument("--batch-size", type=int, help="images a step; each stage's own by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile", action="store_true", help="compile the transformer (needs a C++ compiler)"
    )
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    if options.device != "cpu":
        torch.set_float32_matmul_precision("high")
    batch = {} if options.batch_size is None else {"batch_size": options.batch_size}
    work_dir: Path = options.work_dir
    work_dir.mkdir(parents=True, exist_ok=True)
    stages = chosen_stages(options, STAGES)
    if stages != ("export",):
        bank = load_bank(work_dir, options.bank_size, options.seed)
    if "vae" in stages:
        vae = train_vae(
            work_dir,
            bank,
            Budget(options.minutes_vae, options.steps),
            device=options.device,
            seed=options.seed + 1,
        )
        vae.save_pretrained(work_dir / "vae")
    if "flow" in stages:
        vae = AutoencoderTiny.from_pretrained(work_dir / "vae").to(options.device)
        latents, tokens = encode_bank(work_dir, bank, vae, options.device)
        train_flow(
            work_dir,
            latents,
            tokens,
            Budget(options.minutes_flow, options.steps),
            device=options.device,
            seed=options.seed + 2,
            **batch,
            compiled=options.compile,
        )
    if "decoder" in stages:
        vae = AutoencoderTiny.from_pretrained(work_dir / "vae").to(options.device)
        latents, _ = encode_bank(work_dir, bank, vae, options.device)
        sharpen_decoder(
            work_dir,
            bank,
            latents,
            vae,
            Budget(options.minutes_decoder, options.steps),
            device=options.device,
            seed=options.seed + 4,
        )
    if "clip" in stages:
        vae = AutoencoderTiny.from_pretrained(work_dir / "vae").to(options.device)
        latents, _ = encode_bank(work_dir, bank, vae, options.device)
        _take_sharper_decoder(work_dir, vae)
        train_clip(
            work_dir,
            bank,
            latents,
            vae,
            Budget(options.minutes_clip, options.steps),
            device=options.device,
            seed=options.seed + 3,
            **batch,
        )
    if {"scales", "var", "codes", "tokens"} & set(stages):
        _train_token_models(work_dir, bank, stages, options, batch)
    if "export" in stages:
        export(work_dir, options.output, options.seed)


def _train_token_models(
    work_dir: Path,
    bank: Bank,
    stages: Sequence[str],
    options: argparse.Namespace,
    batch: Mapping[str, int],
) -> None:
    """The stages that build on the flow's autoencoder."""
    vae = autoencoder(work_dir).to(options.device)
    latents, _ = encode_bank(work_dir, bank, vae, options.device)
    seed, steps = options.seed, options.steps
    how: Any = {"device": options.device, **batch}
    if "scales" in stages:
        budget = Budget(options.minutes_scales, steps)
        train_tokenizers.train_scales(work_dir, bank, latents, vae, budget, seed=seed + 5, **how)
    if "var" in stages:
        coder = train_tokenizers.load_coder("scales", work_dir, vae)
        features, tokens = train_var.encode_bank(work_dir, bank, latents, coder)
        budget = Budget(options.minutes_var, steps)
        train_var.train_var(work_dir, features, tokens, coder.quantizer, budget, seed=seed + 6, **how)
    if "codes" in stages:
        budget = Budget(options.minutes_codes, steps)
        train_tokenizers.train_codes(work_dir, bank, latents, vae, budget, seed=seed + 7, **how)
    if "tokens" in stages:
        coder = train_tokenizers.load_coder("codes", work_dir, vae)
        codes, blocks = train_tokens.encode_bank(work_dir, bank, latents, coder)
        codebook = coder.codebook().to(options.device)
        corrupt = train_tokens.either(train_tokens.masked, train_tokens.jumped(codebook))
        budget = Budget(options.minutes_tokens, steps)
        train_tokens.train_tokens(work_dir, codes, blocks, corrupt, budget, seed=seed + 7, **how)


if __name__ == "__main__":
    main()
