"""The commands ``score`` and ``verifier-bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tts_vision.cli.application import INCOMPLETE, app, explained
from tts_vision.cli.tables import add_row, print_table


@app.command()
def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Images and clips.")],
    verifiers: Annotated[
        list[str], typer.Option("--verifier", "-v", help="What scores. Give once per verifier.")
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            help="One for all files, or one per file in their order. (default: as their metadata says)",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Score images and clips that you have, by any verifiers.

    Exit code 1 says that something could not be scored; why is told on standard error.
    """
    import json

    from rich.table import Table

    from tts_vision.hub import asked_once
    from tts_vision.score_files import score_files

    with explained(verifiers), asked_once():
        found = score_files([file.expanduser() for file in files], prompts or None, verifiers)
    if as_json:
        typer.echo(json.dumps([file.as_json() for file in found], indent=2, ensure_ascii=False))
    else:
        table = Table()
        table.add_column("file")
        for name in found[0].scores:
            table.add_column(name, justify="right")
        for file in found:
            values = [s.value for s in file.scores.values()]
            add_row(table, str(file.path), *(f"{v:.4f}" if v == v else "unscored" for v in values))
        print_table(table)
    complaints = [line for file in found for line in file.complaints]
    for line in complaints:
        typer.echo(line, err=True)
    if complaints:
        raise typer.Exit(INCOMPLETE)


@app.command("verifier-bench")
def verifier_bench(
    verifiers: Annotated[list[str], typer.Option("--verifier", "-v", help="Give once per verifier.")],
    images: Annotated[int, typer.Option(help="Samples that are timed.")] = 32,
    size: Annotated[int, typer.Option(help="Height and width of the samples.")] = 512,
    frames: Annotated[int, typer.Option(help="Frames of a clip, for verifiers of clips.")] = 16,
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option("--batch-size", help="Give once per size to try; the default otherwise."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Measure samples per second and memory of verifiers, on random samples, each in its own process.

    Exit code 1 says that one could not be measured; why is told on standard error.
    """
    import json
    from dataclasses import asdict

    from rich.table import Table

    from tts_vision.verifier_bench import Measurement, bench

    found = []
    failed = False
    for row in bench(verifiers, images=images, size=size, frames=frames, batch_sizes=batch_sizes or ()):
        if isinstance(row, Measurement):
            found.append(row)
        else:
            failed = True
            typer.echo(str(row), err=True)
    if as_json:
        rows = [{**asdict(row), "per_second": row.per_second} for row in found]
        typer.echo(json.dumps(rows, indent=2))
    elif found:
        table = Table()
        for head in ("verifier", "scored", "per second", "loading, s", "peak, MB", "risen by, MB"):
            table.add_column(head, justify="left" if head == "verifier" else "right")
        for row in found:
            kind = "clips" if row.kind == "video" else "images"
            scored = f"{row.samples - row.unscored} of {row.samples} {kind}"
            memory = [f"{value / 2**20:.0f}" for value in (row.peak_memory, row.own_memory)]
            add_row(table, row.verifier, scored, f"{row.per_second:.2f}", f"{row.loading:.2f}", *memory)
        print_table(table)
    if failed:
        raise typer.Exit(INCOMPLETE)
