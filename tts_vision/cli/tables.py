"""Tables of plugins and their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from tts_vision.catalogue import Listing
    from tts_vision.registry import Kind


def kind_table(kind: Kind, found: Sequence[Listing]) -> Table:
    from rich.table import Table

    table = Table(title=f"{kind}s", title_justify="left", title_style="bold")
    for head in ("name", "what", "needs" if kind == "algorithm" else "notes", "parameters"):
        table.add_column(head)
    for listing in found:
        names = ", ".join(setting.name for setting in listing.parameters)
        add_row(table, listing.name, listing.summary, _facts(listing), names)
    return table


def _facts(listing: Listing) -> str:
    questions = f"a verifier that answers {' and '.join(listing.asks)}"
    facts = [*listing.needs, *([questions] if listing.asks else [])]
    facts += ["(stochastic steps)"] if listing.wants_stochastic else []
    facts += listing.accepts
    return ", ".join([*facts, *(f"{key}: {value}" for key, value in listing.notes.items())])


def as_flag(name: str) -> str:
    """The flag of a parameter."""
    return "--" + name.replace("_", "-")


def print_listing(listing: Listing) -> None:
    typer.echo(f"{listing.kind} {listing.name}")
    typer.echo(listing.doc.partition("\nArgs:")[0].strip())
    if listing.paper:
        typer.echo(f"paper: {listing.paper}")
    if facts := _facts(listing):
        typer.echo(f"{'needs' if listing.kind == 'algorithm' else 'notes'}: {facts}")
    if listing.parameters:
        print_table(parameter_table(listing, flags=listing.kind == "algorithm"))


def parameter_table(listing: Listing, *, flags: bool) -> Table:
    from rich.table import Table

    table = Table(title=f"parameters of {listing.name}", title_justify="left", title_style="bold")
    for head in ("flag" if flags else "name", "type", "default", "meaning"):
        table.add_column(head)
    for setting in listing.parameters:
        name = as_flag(setting.name) if flags else setting.name
        default = "fits the budget" if setting.name == listing.size else setting.default
        add_row(table, name, setting.type, default, setting.help)
    return table


def add_row(table: Table, *cells: str) -> None:
    """A row of plain text: brackets, as in ``list[int]``, are no markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))


def print_table(table: Table) -> None:
    from rich.console import Console

    console = Console()
    # a pipe has no width of its own
    (console if console.is_terminal else Console(width=160)).print(table)
