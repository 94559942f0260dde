"""Runs every algorithm on every bundled model: ``python -m tts_vision.eval.matrix``.

Each search has a budget of a few samples. Writes ``docs/algorithms/matrix.md``: which pairs run, and why the
others are refused.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tts_vision.config import ModelOptions, RunConfig, Spec
from tts_vision.errors import CapabilityError, ConfigError, SearchWarning
from tts_vision.eval.playground import evaluation_prompts, tracks_of
from tts_vision.eval.playground.plan import bundled_models, unsized
from tts_vision.files import replace_file
from tts_vision.loaded import Models
from tts_vision.registry import entries
from tts_vision.runner import run

PAGE = Path(__file__).parent.parent / "docs" / "algorithms" / "matrix.md"
GUIDES = {
    "motion": ("playground_motion_judge", "playground_motion"),
    "easy": ("playground_judge", "playground_parm", "playground_oracle"),
}
"""Verifiers of a track: the first one that an algorithm takes guides it."""


@dataclass(frozen=True)
class Pair:
    """What became of an algorithm on a model.

    Attributes:
        algorithm: Its name.
        model: Its name.
        reason: Why it does not run; None if it does.
        share: Share of the compute that the algorithm itself spent; independent samples took the rest.
    """

    algorithm: str
    model: str
    reason: str | None = None
    share: float = 0.0


def tried(algorithm: str, model: str, models: Models, budget: str) -> Pair:
    """Runs an algorithm on a model.

    Args:
        algorithm: With parameters as ``name:key=value``.
        model: A bundled one.
        models: Those in memory.
        budget: Of the search.
    """
    reason = unsized(algorithm)
    if reason is not None:
        return Pair(algorithm, model, reason)
    track = tracks_of(model)[0]
    (prompt,) = evaluation_prompts(1, track)
    for guide in GUIDES[track]:
        config = RunConfig(
            prompt=prompt.text,
            prompt_metadata=dict(prompt.metadata),
            model=model,
            model_options=ModelOptions(device="cpu"),
            algorithm=algorithm,
            verifier=guide,
            budget=budget,
        )
        try:
            result = run(config, models.live(config))
        except (CapabilityError, ConfigError) as error:
            reason = str(error)
            continue
        share = 1 - result.topped_up.share_of(result.spent)
        if share:
            return Pair(algorithm, model, share=share)
        reason = f"{budget} are too little for its smallest size; raise the budget."
    return Pair(algorithm, model, reason)


def page(pairs: Sequence[Pair], budget: str) -> str:
    """The page, from the pairs that were tried."""
    models = list(dict.fromkeys(pair.model for pair in pairs))
    algorithms = list(dict.fromkeys(pair.algorithm for pair in pairs))
    found = {(pair.algorithm, pair.model): pair for pair in pairs}
    reasons: dict[str, int] = {}
    for pair in pairs:
        if pair.reason is not None:
            reasons.setdefault(one_line(pair.reason), len(reasons) + 1)

    def cell(algorithm: str, model: str) -> str:
        pair = found.get((algorithm, model))
        if pair is None:
            return ""
        return "runs" if pair.reason is None else f"no ({reasons[one_line(pair.reason)]})"

    lines = [
        "# Algorithms and models",
        "",
        f"Every algorithm on every bundled model, tried with a budget of {budget}",
        "(`python -m tts_vision.eval.matrix`, which writes this page). A number says why a pair is refused.",
        "The [list](index.md) says what an algorithm needs of other models.",
        "",
        "| | " + " | ".join(f"`{model}`" for model in models) + " |",
        "|---|" + "---|" * len(models),
    ]
    for algorithm in algorithms:
        cells = " | ".join(cell(algorithm, model) for model in models)
        lines.append(f"| `{algorithm}` | {cells} |")
    if reasons:
        lines += ["", "Refused:", ""]
        lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def one_line(reason: str) -> str:
    """A message as one line of Markdown."""
    return " ".join(reason.split()).replace("|", "\\|").replace("<", "&lt;")


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries all pairs and writes the page.

    Args:
        arguments: Command line, that of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tts_vision.eval.matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    own = [entry.name for entry in entries("algorithm") if entry.target.__module__.startswith("tts_vision.")]
    parser.add_argument("--algorithms", nargs="+", default=own, metavar="NAME")
    parser.add_argument("--models", nargs="+", default=bundled_models(), metavar="NAME")
    parser.add_argument("--budget", default="6x")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    pairs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SearchWarning)
        for model in options.models:
            models = Models(keep=len(GUIDES["easy"]))
            for algorithm in options.algorithms:
                pairs.append(tried(str(Spec.parse(algorithm)), model, models, options.budget))
                print(f"{model}: {algorithm}: {pairs[-1].reason or 'runs'}", file=sys.stderr, flush=True)
            text = page(pairs, options.budget)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            replace_file(options.output, lambda part, text=text: part.write_text(text), "The page")


if __name__ == "__main__":
    main()
