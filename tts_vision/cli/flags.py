"""Parameters of a plugin as flags of a command."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import typer
from typer.core import TyperCommand

from tts_vision.cli.application import only_named
from tts_vision.cli.tables import as_flag, parameter_table, print_table
from tts_vision.config import Spec, did_you_mean, read_yaml
from tts_vision.errors import ConfigError, TTSVisionError

if TYPE_CHECKING:
    from tts_vision.catalogue import Listing, Setting
    from tts_vision.registry import Kind


EXTRA = "plugin flags"
"""Key of the values of flags that are a plugin's parameters, in ``ctx.meta``."""


class PluginCommand(TyperCommand):
    """Takes the parameters of a chosen plugin as flags beside its own options."""

    kind: ClassVar[Kind]
    default: ClassVar[str]
    """The plugin of a line that names none; empty where one must be named."""
    help_flags: ClassVar[str]

    def chosen(self, args: Sequence[str]) -> str | None:
        """The plugin that a command line chooses, as far as that can be told before it is parsed."""
        raise NotImplementedError

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["args"] = list(args)
        with only_named(args):
            try:
                own, extra = self._split(args)
            except ConfigError:
                if not ctx.resilient_parsing:
                    raise
                own, extra = list(args), {}  # a line that is being completed
            ctx.meta[EXTRA] = extra
            return super().parse_args(ctx, own)

    def invoke(self, ctx: Any) -> Any:
        with only_named(ctx.meta["args"]):
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        name = self.chosen(ctx.meta["args"])
        if name is None:
            typer.echo(self.help_flags)
        else:
            print_table(parameter_table(_listing(self.kind, name), flags=True))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        found = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("--"):
            return found
        try:
            with only_named(ctx.meta["args"]):
                flags = self._flags(ctx.meta["args"])
        except TTSVisionError:
            return found
        item = importlib.import_module(
            f"{type(ctx).__module__.rpartition('.')[0]}.shell_completion"
        ).CompletionItem
        return found + [item(flag, help=p.help) for flag, p in flags.items() if flag.startswith(incomplete)]

    def _flags(self, args: Sequence[str]) -> Mapping[str, Setting]:
        name = self.chosen(args) or self.default
        return {} if not name else {as_flag(s.name): s for s in _listing(self.kind, name).parameters}

    def _split(self, args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The arguments that are this command's own, and the values of all other long flags."""
        takes_value = {
            name: not getattr(param, "is_flag", False)
            for param in self.params
            for name in (*param.opts, *param.secondary_opts)
        }
        takes_value |= {"--help": False, "-h": False}
        own: list[str] = []
        extra: dict[str, Any] = {}
        known: Mapping[str, Setting] | None = None
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            name, equals, value = arg.partition("=")
            if arg == "--":
                own += [arg, *rest]
                break
            if not name.startswith("--") or name in takes_value:
                own.append(arg)
                if takes_value.get(name) and not equals and rest:
                    own.append(rest.pop(0))
                continue
            if known is None:
                known = self._flags(args)
            parameter, given = self._flag(name, known, takes_value, self.chosen(args) or self.default)
            if given is not None:
                extra[parameter] = given
            elif equals:
                extra[parameter] = value
            elif rest:
                extra[parameter] = rest.pop(0)
            else:
                raise ConfigError(f"Flag {name} needs a value but got none; write '{name} VALUE'.")
        return own, extra

    def _flag(
        self, name: str, known: Mapping[str, Setting], own: Iterable[str], plugin: str
    ) -> tuple[str, bool | None]:
        """The parameter that a flag sets; and its value where the flag itself says it."""
        spelled = "--" + name[2:].replace("_", "-")
        if spelled in known:
            return known[spelled].name, True if known[spelled].type == "bool" else None
        positive = "--" + spelled.removeprefix("--no-")
        if spelled.startswith("--no-") and positive in known and known[positive].type == "bool":
            return known[positive].name, False
        remedy = did_you_mean(spelled, [*known, *own], f"'tts-vision {self.name} --help' shows all.")
        raise ConfigError(
            f"Flags must be options of {self.name!r} or parameters of {self.kind} {plugin!r} "
            f"({', '.join(known) or 'it has none'}) but got {name!r}; {remedy}"
        )


class AlgorithmFlags(PluginCommand):
    """Takes the parameters of the chosen algorithm as flags."""

    kind, default = "algorithm", "best_of_n"
    help_flags = "Parameters of an algorithm are flags too: '--algorithm NAME --help' shows them."

    def chosen(self, args: Sequence[str]) -> str | None:
        found: str | None = None
        for i, arg in enumerate(args):
            flag, equals, value = arg.partition("=")
            if not equals and i + 1 < len(args):
                value = args[i + 1]
            if flag == "--config" and found is None:
                found = str(read_yaml(value).get("algorithm") or "best_of_n")
            elif flag in {"--algorithm", "-a"} or (flag.startswith("-a") and not flag.startswith("--")):
                return Spec.parse(value if flag in {"--algorithm", "-a"} else arg[2:]).name
            elif flag == "--set" and value.startswith("algorithm="):
                found = value.partition("=")[2]
        return None if found is None else Spec.parse(found).name


class EvaluatorFlags(PluginCommand):
    """Takes the parameters of the chosen evaluator, the first word of the line, as flags."""

    kind, default = "evaluator", ""
    help_flags = "Parameters of an evaluator are flags too: 'tts-vision eval NAME --help' shows them."

    def chosen(self, args: Sequence[str]) -> str | None:
        first = args[0] if args and not args[0].startswith("-") else ""
        return Spec.parse(first).name if first else None


def _listing(kind: Kind, name: str) -> Listing:
    """The facts of a plugin; one of a user's own is imported for them."""
    from tts_vision.catalogue import listings, of_entry
    from tts_vision.registry import lookup

    known = next((listing for listing in listings(kind) if listing.name == name), None)
    return known or of_entry(lookup(kind, name))
