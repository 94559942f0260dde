"""The command ``list``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tts_vision.cli.application import app
from tts_vision.cli.tables import kind_table, print_listing, print_table
from tts_vision.config import did_you_mean
from tts_vision.errors import UnknownNameError

if TYPE_CHECKING:
    from tts_vision.catalogue import Listing
    from tts_vision.registry import Kind


_KINDS: tuple[Kind, ...] = (
    "model",
    "sampler",
    "algorithm",
    "verifier",
    "rewriter",
    "corrector",
    "evaluator",
)


@app.command("list")
def list_plugins(
    what: Annotated[
        str | None, typer.Argument(help="A kind (models, samplers, algorithms, verifiers, ...) or a name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Show what is there: models, samplers, algorithms, verifiers, evaluators, and their parameters."""
    from tts_vision.catalogue import listings

    kinds = {name: kind for kind in _KINDS for name in (kind, f"{kind}s")}
    chosen = _KINDS if what is None or what not in kinds else (kinds[what],)
    found = [listing for kind in chosen for listing in listings(kind)]
    if what is not None and what not in kinds:
        found = [listing for listing in found if listing.name == what] or [_find(what, found, list(kinds))]
    if as_json:
        import json

        typer.echo(json.dumps([listing.as_json() for listing in found], indent=2, ensure_ascii=False))
    elif what is not None and what not in kinds:
        for listing in found:
            print_listing(listing)
    else:
        for kind in chosen:
            print_table(kind_table(kind, [listing for listing in found if listing.kind == kind]))
        if what is None:
            typer.echo("'tts-vision list NAME' shows the parameters of one.")


def _find(what: str, known: Sequence[Listing], kinds: Sequence[str]) -> Listing:
    """A plugin of a user's own, by file or module."""
    from tts_vision.catalogue import of_entry
    from tts_vision.registry import lookup

    if "@" in what or ":" in what:
        return of_entry(lookup("algorithm", what))
    names = list(dict.fromkeys(listing.name for listing in known))
    raise UnknownNameError(
        f"'list' takes a kind ({', '.join(f'{kind}s' for kind in _KINDS)}) or a name "
        f"({', '.join(names)}) but got {what!r}; {did_you_mean(what, [*kinds, *names])}"
    )
