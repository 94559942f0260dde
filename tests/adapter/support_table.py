"""Prints the table of the pipeline classes that are driven, from a run of all checks on tiny pipelines.

python tests/adapter/support_table.py > table.md
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from classes import CLASSES, REFUSED
from contract import CHECKS, NotPromised, Subject

from tiny_pipelines import TINY, TinyPipeline
from tts_vision.errors import TTSVisionError
from tts_vision.pipelines.chunks.loading import CHUNKED
from tts_vision.pipelines.whole import UNDRIVABLE


def row(entry: TinyPipeline, name: str | None = None) -> str:
    """One line of the table: the class, how it is driven, and a mark for each check."""
    try:
        subject = Subject.of(entry)
    except TTSVisionError as error:
        return f"| {name or entry.name} | refused: {error} |" + " |" * len(CHECKS)
    marks = []
    for check in CHECKS.values():
        try:
            check(subject)
        except NotPromised:
            marks.append("-")
        except Exception:  # whatever breaks a promise
            marks.append("no")
        else:
            marks.append("yes")
    name = name or f"`{type(subject.pipe).__name__}`"
    setting = entry.name.partition(", ")[2]
    driven = f"whole: {subject.sampler._whole}" if subject.whole else "step by step"
    if not subject.whole and not subject.reproducible:
        driven += "; its own call draws without its generator"
    return f"| {name}{', ' + setting if setting else ''} | {driven} | {' | '.join(marks)} |"


def main() -> None:
    """Runs the checks on every class and prints the table as Markdown."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = [row(entry) for entry in (*TINY.values(), *CLASSES.values())]
    rows += [row(refused.entry, f"`{name}`") for name, refused in REFUSED.items() if name not in UNDRIVABLE]
    rows += [f"| `{name}` | refused: {why} |" + " |" * len(CHECKS) for name, why in UNDRIVABLE.items()]
    rows += [
        f"| `{name}` | chunk by chunk, by the sampler `chunks` |" + " |" * len(CHECKS) for name in CHUNKED
    ]
    print(f"| pipeline class | driven | {' | '.join(CHECKS)} |")
    print("|---|---|" + "---|" * len(CHECKS))
    print("\n".join(sorted(dict.fromkeys(rows))))


if __name__ == "__main__":
    main()
