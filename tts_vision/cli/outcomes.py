"""The outcome of a search, told on a terminal or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tts_vision.files import best_of

if TYPE_CHECKING:
    from tts_vision.results import Result


def best_file(folder: Path) -> Path:
    """The best sample in the folder of a search."""
    return best_of(folder) or folder


def outcome_json(result: Result, folder: Path) -> dict[str, Any]:
    """The outcome of a search as one JSON object; scores that there are not are null."""
    best, plain, spent, holdout = result.best, result.plain, result.spent, result.holdout

    def number(value: float | None) -> float | None:
        return value if value is not None and value == value and abs(value) != float("inf") else None

    return {
        "folder": str(folder),
        "best": str(best_file(folder)),
        "prompt": result.config.prompt,
        "seed": result.config.seed,
        "model": result.config.model,
        "algorithm": result.config.algorithm,
        "verifier": result.config.verifier,
        "score": number(best.score.value),
        "parts": {name: number(value) for name, value in best.score.parts.items()},
        "plain_score": None if plain is None else number(plain.score.value),
        "holdout": None
        if holdout is None
        else {
            "verifier": result.config.holdout_verifier,
            "best": number(holdout.best),
            "first": number(holdout.first),
            "spearman": number(holdout.spearman),
        },
        "target": result.config.target,
        "satisfied": result.satisfied,
        "samples": len(result.population),
        "spent": {
            "nfe": spent.nfe,
            "macs": spent.macs,
            "decodes": spent.decodes,
            "verifier_calls": spent.verifier_calls,
            "seconds": round(spent.elapsed, 3),
        },
        "budget": result.config.budget,
        "budget_spent": result.budget_spent,
        "is_preview": result.is_preview,
        "warnings": list(result.warnings),
    }


def tell_outcome(result: Result, folder: Path) -> None:
    """Tells the outcome of a search."""
    best, plain, spent = result.best, result.plain, result.spent
    file = best_file(folder)
    compared = ""
    if plain is not None and plain.score.value == plain.score.value:
        compared = f"  (plain sample {plain.score.value:.4f}, {best.score.value - plain.score.value:+.4f})"
    limit = f" of {result.budget.nfe:g}" if result.budget.nfe else ""
    typer.echo(f"best    {file}")
    typer.echo(f"score   {best.score.value:.4f} by {result.config.verifier}{compared}")
    if best.score.parts:
        typer.echo("        " + ", ".join(f"{name} {value:.4f}" for name, value in best.score.parts.items()))
    if (holdout := result.holdout) is not None:
        name, ranks = result.config.holdout_verifier, holdout.spearman
        agree = "" if ranks is None else f"; rank agreement with the guide {ranks:.2f}"
        typer.echo(f"holdout {holdout.best:.4f} by {name}  (first sample {holdout.first:.4f}{agree})")
        if holdout.fell:
            typer.echo(f"warning {holdout.warning(result.config.verifier, str(name))}")
    if result.satisfied is not None:
        typer.echo(f"target  {result.config.target}: {'satisfied' if result.satisfied else 'not satisfied'}")
    extra = result.topped_up
    typer.echo(
        f"spent   {spent.nfe:g}{limit} nfe, {spent.verifier_calls} verifier calls, {spent.elapsed:.1f} s; "
        f"{len(result.population)} samples"
        + (f", {extra.samples} of them independent, for the rest of the budget" if extra.samples else "")
    )
    if spent.macs:
        most = f" of {result.budget.macs / 1e9:.4g}" if result.budget.macs else ""
        typer.echo(
            f"        {spent.macs / 1e9:.4g}{most} GMAC, {spent.tokens:g} tokens, {spent.decodes} decodes"
        )
    for message in result.warnings:
        typer.echo(f"warning {message}")
    if result.stopped:
        shown = "the best preview" if result.is_preview else "the best so far"
        typer.echo(f"note    the search was stopped and can go on: this is {shown}")
    elif result.is_preview:
        typer.echo("note    the budget ended before a sample was finished: this is a preview")
    elif result.budget_spent:
        typer.echo("note    the budget ended the search before its algorithm did: this is the best so far")
