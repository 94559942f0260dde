"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tts_vision.registry import Kind


def plugin_names(*kinds: Kind) -> Callable[[str], list[str]]:
    """Completes names of plugins."""

    def complete(incomplete: str) -> list[str]:
        from tts_vision.registry import known_names

        found = {name for kind in kinds for name in known_names(kind) if "{" not in name}
        return sorted(name for name in found if name.startswith(incomplete))

    return complete


PromptTexts = Annotated[list[str] | None, typer.Argument(help="What to generate.", show_default=False)]


PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts", help="A file of prompts: one per line, a JSON list, JSON lines, or CSV with 'prompt'."
    ),
]


Model = Annotated[
    str | None,
    typer.Option(
        help="Registered name, folder, or hub id. (default: the bundled model)",
        autocompletion=plugin_names("model"),
    ),
]


Algorithm = Annotated[
    str | None,
    typer.Option(
        "--algorithm",
        "-a",
        help="Search algorithm. (default: best_of_n)",
        autocompletion=plugin_names("algorithm"),
    ),
]


Algorithms = Annotated[
    list[str] | None,
    typer.Option(
        "--algorithm",
        "-a",
        help="Give once per algorithm; parameters as name:key=value. (default: best_of_n)",
        autocompletion=plugin_names("algorithm"),
    ),
]
Verifier = Annotated[
    str | None,
    typer.Option(
        "--verifier",
        "-v",
        help="What scores: NAME, NAME:key=value, ensemble(NAME, NAME), ... (default: the model's own, if it "
        "has one)",
        autocompletion=plugin_names("verifier"),
    ),
]


HoldoutVerifier = Annotated[
    str | None,
    typer.Option(
        help="A verifier that judges the samples after the search and never guides it.",
        autocompletion=plugin_names("verifier"),
    ),
]


BudgetText = Annotated[
    str | None,
    typer.Option("--budget", "-b", help="'16x', 'nfe=2000', 'seconds=60 and nfe=500', ... (default: 16x)"),
]


Until = Annotated[
    str | None,
    typer.Option(
        "--until",
        help="Stop as soon as a sample's score reaches this, or 'satisfied' where the verifier checks "
        "demands.",
    ),
]


Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="New folder. (default: one under outputs/)")
]


Steps = Annotated[int | None, typer.Option(help="num_inference_steps of the pipeline.")]


Guidance = Annotated[float | None, typer.Option(help="guidance_scale of the pipeline.")]


NegativePrompt = Annotated[str | None, typer.Option(help="negative_prompt of the pipeline.")]


MaxBatch = Annotated[int | None, typer.Option(help="Particles computed at once. (default: all that fit)")]


Stochastic = Annotated[
    bool | None,
    typer.Option(
        "--stochastic/--no-stochastic", help="Noise at each step. (default: as the algorithm wants)"
    ),
]


Eta = Annotated[float | None, typer.Option(help="How much noise stochastic steps add.")]


PreviewSize = Annotated[
    int | None, typer.Option(help="Longest side of previews in pixels, where the model can choose.")
]


PreviewFrames = Annotated[
    int | None, typer.Option(help="Frames that previews of a clip have, evenly spaced. (default: all)")
]


Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]


Device = Annotated[str | None, typer.Option(help="Where the model runs.")]


Offload = Annotated[str | None, typer.Option(help="none, model or sequential.")]


Attention = Annotated[str | None, typer.Option(help="Attention back end, such as xformers.")]


Scheduler = Annotated[
    str | None, typer.Option(help="A diffusers scheduler class in place of the model's own.")
]


Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run the code and ask the endpoints that the configuration in a file or folder names."
    ),
]


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting: algorithm.n=32, sampler.sde=euler, pipeline.height=512, ..."),
]
