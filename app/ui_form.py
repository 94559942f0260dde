"""Controls that several tabs share, and the settings of a search that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from tts_vision.app.jobs import Jobs
from tts_vision.app.ui_words import for_artists, label_of
from tts_vision.catalogue import Setting, listings
from tts_vision.config import RunConfig, default_model, override
from tts_vision.errors import ConfigError

_FIRST = "best_of_n"
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
    return gr.Dropdown(searches(), value=_FIRST, label=label, interactive=True, info=about(_FIRST))


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


def parameters_control() -> gr.HTML:
    """The parameters of the chosen algorithm, with their docstrings as help.

    Its value is the ``algorithm`` and the ``values`` that are written, as texts by name; what is empty is at
    its default. All algorithms are in the page, so that no answer of the server is waited for.
    """
    return gr.HTML(
        {"algorithm": _FIRST, "values": {}},
        html_template='<div class="tv-params"></div>',
        js_on_load="ttsVision.parameters(element, {watch, props})",
        elem_id="tv-parameters",
        apply_default_css=False,
        settings={
            listing.name: [_described(setting) for setting in listing.parameters]
            for listing in listings("algorithm")
        },
    )


def parameters_of(algorithm: str, written: Any) -> dict[str, str]:
    """The parameters that are written in the control.

    Raises:
        ConfigError: If they are those of another algorithm.
    """
    given = {name: str(value) for name, value in written["values"].items() if str(value).strip()}
    if given and written["algorithm"] != algorithm:
        raise ConfigError(
            f"Parameters must be of the algorithm {algorithm!r} but got those of {written['algorithm']!r}; "
            "choose the algorithm again."
        )
    return given


def _described(setting: Setting) -> dict[str, Any]:
    """A parameter as the script of the page needs it."""
    return {
        "name": setting.name,
        "label": label_of(setting),
        "help": for_artists(setting.help),
        "default": "by the budget" if setting.default == "None" and setting.name == "n" else setting.default,
        "choices": _CHOICES.get(setting.type) or _literals(setting.type),
    }


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
    try:
        if kind == "model":
            jobs.rules.check_model(name)
        else:
            jobs.rules.check_verifier(name)
    except ConfigError:
        return False
    return True
