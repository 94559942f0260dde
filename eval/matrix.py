"""Runs every algorithm on every bundled model: ``python -m tts_vision.eval.matrix``.

Each search has a budget of a few samples, or the next larger one where that is too little. Writes
``docs/algorithms/matrix.md``: which pairs run, and why the others are refused. Pairs are kept in
``eval/results/matrix.json``; a run of some algorithms or models renews theirs.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from tts_vision.config import ModelOptions, RunConfig
from tts_vision.errors import CapabilityError, ConfigError, SearchWarning
from tts_vision.eval.playground import evaluation_prompts, tracks_of
from tts_vision.eval.playground.plan import bundled_models, unsized
from tts_vision.files import is_file, read_file, replace_file
from tts_vision.loaded import Models
from tts_vision.parameters import parameters
from tts_vision.pipelines.playground import world
from tts_vision.registry import entries, lookup
from tts_vision.runner import run

PAIRS = Path(__file__).with_name("results") / "matrix.json"
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
    """

    algorithm: str
    model: str
    reason: str | None = None


def tried(algorithm: str, model: str, models: Models, budgets: Sequence[str], image: Path) -> Pair:
    """Runs an algorithm on a model.

    Args:
        algorithm: Its name.
        model: A bundled one.
        models: Those in memory.
        budgets: Of the search: the first one that is enough.
        image: For algorithms that start from one.
    """
    reason = unsized(algorithm)
    if reason is not None:
        return Pair(algorithm, model, reason)
    track = tracks_of(model)[0]
    (prompt,) = evaluation_prompts(1, track)
    given = {"image": str(image)} if "image" in parameters(lookup("algorithm", algorithm).target) else {}
    for guide, budget in ((guide, budget) for guide in GUIDES[track] for budget in budgets):
        config = RunConfig(
            prompt=prompt.text,
            prompt_metadata=dict(prompt.metadata),
            model=model,
            model_options=ModelOptions(device="cpu"),
            algorithm=algorithm,
            algorithm_params=given,
            verifier=guide,
            budget=budget,
        )
        try:
            result = run(config, models.live(config))
        except (CapabilityError, ConfigError) as error:
            reason = reason or str(error)
            continue
        if result.topped_up.share_of(result.spent) < 1:
            return Pair(algorithm, model)
        reason = f"A budget of {budget} is too little for its smallest size; raise it."
    return Pair(algorithm, model, reason)


def page(pairs: Sequence[Pair], budgets: Sequence[str]) -> str:
    """The page, from the pairs that were tried."""
    models = sorted({pair.model for pair in pairs})
    algorithms = sorted({pair.algorithm for pair in pairs})
    pairs = sorted(pairs, key=lambda pair: (pair.algorithm, pair.model))
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
        f"Every algorithm on every bundled model, tried with a budget of {', else '.join(budgets)}",
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


def read(path: Path) -> dict[tuple[str, str], Pair]:
    """The pairs in a file, by algorithm and model; none without a file."""
    if not is_file(path):
        return {}
    pairs = [Pair(**values) for values in json.loads(read_file(path))]
    return {(pair.algorithm, pair.model): pair for pair in pairs}


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
    parser.add_argument("--budgets", nargs="+", default=["6x", "40x"], metavar="TIMES")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="keeps all pairs")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    pairs = read(options.pairs)
    with warnings.catch_warnings(), TemporaryDirectory() as folder:
        image = Path(folder) / "circle.png"
        drawn = world.sample_scene(np.random.default_rng(0), world.parse_spec("a red circle"))
        Image.fromarray(world.render(drawn)).save(image)
        warnings.simplefilter("ignore", SearchWarning)
        for model in options.models:
            models = Models(keep=len(GUIDES["easy"]))
            for algorithm in options.algorithms:
                pair = tried(algorithm, model, models, options.budgets, image)
                pairs[algorithm, model] = pair
                kept = json.dumps([asdict(each) for each in pairs.values()], indent=1) + "\n"
                replace_file(options.pairs, partial(_write, kept), "The pairs")
                print(f"{model}: {algorithm}: {pair.reason or 'runs'}", file=sys.stderr, flush=True)
    text = page(list(pairs.values()), options.budgets)
    replace_file(options.output, partial(_write, text), "The page")


def _write(text: str, path: Path) -> None:
    path.write_text(text)


if __name__ == "__main__":
    main()
