"""Controls that several tabs share, and the settings of a search that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from tts_vision.app.jobs import Jobs
from tts_vision.app.ui_words import for_artists, label_of
from tts_vision.catalogue import Listing, Setting, listings
from tts_vision.config import RunConfig, default_model, override

_CHOICES = {"bool": ["true", "false"]}


def model_control(jobs: Jobs) -> gr.Dropdown:
    """The choice of a model: the registered ones, or those that the server allows."""
    own = default_model()
    names = [listing.name for listing in listings("model") if _is_allowed(jobs, listing.name, "model")]
    extra = [name for name in sorted(jobs.rules.allowed or ()) if _is_allowed(jobs, name, "model")]
    choices = list(dict.fromkeys([own, *names, *extra]))
    return gr.Dropdown(
        choices,
        value=own,
        label="Model",
        info="The bundled one, or any of the Hugging Face hub by its id.",
        interactive=True,
        allow_custom_value=jobs.rules.allowed is None,
    )


def algorithm_control(label: str = "Algorithm") -> gr.Dropdown:
    """The choice of an algorithm."""
    return gr.Dropdown(searches(), value="best_of_n", label=label, interactive=True, info=about("best_of_n"))


def verifier_control(jobs: Jobs, *, several: bool = False, label: str = "Verifier") -> gr.Dropdown:
    """The choice of verifiers; also of a mix of them, which is typed."""
    names = [each.name for each in listings("verifier") if _is_allowed(jobs, each.name, "verifier")]
    own = RunConfig(prompt="-", model=default_model(), verifier=None).verifier  # type: ignore[arg-type]
    return gr.Dropdown(
        names,
        value=[own] if several else own,
        multiselect=several,
        label=label,
        info="Judges the samples. 'human' asks you.",
        interactive=True,
        allow_custom_value=True,
    )


def searches() -> list[str]:
    """Names of the algorithms that search."""
    return [listing.name for listing in listings("algorithm") if listing.name not in ("draft", "variations")]


def about(algorithm: str) -> str:
    """What an algorithm does, in a sentence."""
    found = {listing.name: listing for listing in listings("algorithm")}.get(algorithm)
    return "" if found is None else for_artists(found.summary)


def parameter_controls(algorithm: str) -> tuple[list[str], list[gr.Component]]:
    """A control for each parameter of an algorithm, with its docstring as help; empty means the default.

    Returns:
        The names of the parameters, and the controls in the same order.
    """
    found: dict[str, Listing] = {listing.name: listing for listing in listings("algorithm")}
    settings = found[algorithm].parameters if algorithm in found else ()
    return [setting.name for setting in settings], [_control(setting) for setting in settings]


def _control(setting: Setting) -> gr.Component:
    choices = _CHOICES.get(setting.type) or _literals(setting.type)
    help = for_artists(setting.help)
    if choices:
        empty = f"default ({setting.default})"
        return gr.Dropdown([(empty, ""), *choices], value="", label=label_of(setting), info=help)
    return gr.Textbox(label=label_of(setting), info=help, placeholder=setting.default, max_lines=1)


def _literals(kind: str) -> list[str]:
    """The texts that a type written ``Literal['a', 'b']`` allows."""
    if not (kind.startswith("Literal[") and kind.endswith("]")):
        return []
    return [part.strip().strip("'\"") for part in kind[len("Literal[") : -1].split(",")]


def config_of(
    *,
    prompt: str,
    model: str,
    algorithm: str,
    verifier: str | None,
    budget: str,
    seed: float | None,
    until: str = "",
    parameters: Mapping[str, str] | None = None,
    settings: str | None = None,
) -> RunConfig:
    """The settings of a search as the form has them.

    Args:
        prompt: What to generate.
        model: The model.
        algorithm: The algorithm.
        verifier: The verifier; the model's own where it is empty.
        budget: The budget.
        seed: The root seed.
        until: ``satisfied``, a score, or nothing.
        parameters: Parameters of the algorithm as texts; empty ones are left at their defaults.
        settings: Further settings, one ``key=value`` a line, as ``--set`` reads them.

    Raises:
        ConfigError: If something cannot be used as given.
    """
    values: dict[str, Any] = {
        "prompt": prompt or "",
        "model": (model or "").strip(),
        "algorithm": algorithm,
        "algorithm_params": {k: v.strip() for k, v in (parameters or {}).items() if v and v.strip()},
        "verifier": (verifier or "").strip() or None,
        "budget": (budget or "").strip() or "16x",
        "seed": 0 if seed is None else _whole(seed),
        "target": until.strip() or None,
    }
    return RunConfig(**override(values, lines_of(settings)))


def lines_of(text: str | None) -> list[str]:
    """The lines of a text that say something; a control that nobody touched has None."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def _whole(number: float) -> int | float:
    """A number without a fraction as an int; `RunConfig` refuses others."""
    return int(number) if number == int(number) else number


def _is_allowed(jobs: Jobs, name: str, kind: str) -> bool:
    from tts_vision.errors import ConfigError

    try:
        if kind == "model":
            jobs.rules.check_model(name)
        else:
            jobs.rules.check_verifier(name)
    except ConfigError:
        return False
    return True


def texts(names: Sequence[str], values: Sequence[Any]) -> dict[str, str]:
    """Parameters by name."""
    return {name: str(value or "") for name, value in zip(names, values, strict=True)}
