"""Command-line options that all trainings have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def training_parser(
    description: str | None, stages: Sequence[str], work_dir: str, seed: int
) -> argparse.ArgumentParser:
    """A parser with the options that all trainings have; each adds its own.

    Args:
        description: Docstring of the training.
        stages: Its stages, in order.
        work_dir: Its work folder by default.
        seed: Its seed by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=(*stages, "all"), default="all")
    parser.add_argument("--work-dir", type=Path, default=Path(work_dir), help="data, checkpoints, log")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_name("weights"), help="exported weights"
    )
    parser.add_argument("--steps", type=int, help="train each stage by this many steps, not by the clock")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=seed)
    return parser


def chosen_stages(options: argparse.Namespace, stages: Sequence[str]) -> tuple[str, ...]:
    """The stages to run.

    Args:
        options: As parsed.
        stages: All stages, in order.
    """
    return tuple(stages) if options.stage == "all" else (options.stage,)
