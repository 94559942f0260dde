"""The Search tab: a form beside the live view of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from tts_vision.app.jobs import Jobs
from tts_vision.app.ui_form import (
    about,
    algorithm_control,
    config_of,
    model_control,
    parameters_control,
    parameters_of,
    verifier_control,
)
from tts_vision.app.ui_live import live_view
from tts_vision.app.ui_words import forecast_of, noted, told
from tts_vision.app.uploads import read
from tts_vision.config import RunConfig, default_model
from tts_vision.errors import ConfigError, TTSVisionError
from tts_vision.types import Video

_UNTIL = [("Spend the whole budget", ""), ("Until it is right", "satisfied"), ("Until this score", "score")]
_SCRIPT = "ttsVision.panel(element, server, {watch, props, trigger, keepsAddress: true})"
_IMAGES = [".png", ".jpg", ".jpeg", ".webp"]
_BEFORE = "How long it will take and what it will cost: press 'Estimate', which loads the model."
_HINT = "Write a prompt and press Search: the samples appear here and sharpen as they are made."


@dataclass(frozen=True)
class Search:
    """The parts of the tab that others set.

    Attributes:
        live: The live view, whose value is the id of the job that it shows.
        form: The controls that a job has values for.
    """

    live: gr.HTML
    form: Sequence[gr.Component]

    def values(self, config: RunConfig) -> list[Any]:
        """The values of the form for a search; a control that has no such choice, as of drafts, is left."""
        values = [config.prompt, config.model, config.algorithm, config.verifier, config.budget, config.seed]
        return [value if _fits(each, value) else gr.skip() for each, value in zip(self.form, values)]


def add(jobs: Jobs, page: gr.Blocks) -> Search:
    """Adds the tab.

    Args:
        jobs: The searches of the server.
        page: The page.
    """
    with gr.Tab("Search", id="search"), gr.Row(elem_classes="tv-columns"):
        with gr.Column(scale=2, min_width=320, elem_classes="tv-form"):
            prompt = gr.Textbox(
                label="Prompt",
                interactive=True,
                lines=2,
                max_lines=6,
                elem_id="tv-prompt",
                placeholder="two red circles left of a blue star",
            )
            with gr.Row():
                go = gr.Button("Search", variant="primary", elem_id="tv-go", min_width=120)
                ask = gr.Button("Estimate", elem_id="tv-ask", min_width=120)
            said = gr.HTML("", elem_classes="tv-said", js_on_load=None)
            model = model_control(jobs)
            algorithm = algorithm_control()
            verifier = verifier_control(jobs)
            with gr.Row():
                budget = gr.Textbox(
                    "16x",
                    label="Budget",
                    interactive=True,
                    max_lines=1,
                    min_width=120,
                    info="16x is 16 samples' worth.",
                )
                seed = gr.Number(
                    0,
                    label="Seed",
                    interactive=True,
                    precision=0,
                    minimum=0,
                    min_width=120,
                    info="Same seed, same result.",
                )
            estimate = gr.HTML(noted(_BEFORE), elem_id="tv-estimate", js_on_load=None)
            until = gr.Dropdown(
                _UNTIL, value="", label="When to stop", info="A verifier that checks demands can say 'right'."
            )
            target = gr.Textbox(label="Stop at this score", placeholder="0.9", visible=False, max_lines=1)
            with gr.Accordion("Start from an image of yours", open=False, elem_id="tv-own"):
                own = gr.File(label="Image", file_types=_IMAGES, height=150, elem_id="tv-own-file")
                far = gr.Slider(
                    0.1,
                    1,
                    0.5,
                    step=0.05,
                    label="How far from it",
                    info="Low: touches it up. High: keeps little.",
                )
                many = gr.Slider(1, 64, 8, step=1, label="How many versions")
                refine = gr.Button("Refine my image", elem_id="tv-own-go")
            with gr.Accordion("Advanced", open=False):
                settings = gr.Textbox(
                    label="Further settings",
                    lines=2,
                    placeholder="pipeline.num_inference_steps=20",
                    info="One KEY=VALUE a line, as '--set' of the command line takes them.",
                )

                parameters = parameters_control()
        with gr.Column(scale=5, min_width=320):
            live = live_view(jobs, "The search", _HINT, "tv-live", script=_SCRIPT)

    inputs = [prompt, model, algorithm, verifier, budget, seed, until, target, settings, parameters]

    def submit(*values: Any) -> tuple[Any, str]:
        return _submit(jobs, values)

    def forecast(*values: Any) -> str:
        return _forecast(jobs, values)

    def forecast_if_light(*values: Any) -> str:
        return forecast(*values) if values[1] == default_model() else noted(_BEFORE)

    gr.on(
        [go.click, prompt.submit],
        submit,
        inputs,
        [live, said],
        show_progress="hidden",
        api_visibility="private",
    )

    def refined(file: str | None, strength: float, n: int, *values: Any) -> tuple[Any, str]:
        return _refine(jobs, file, strength, n, values)

    refine.click(
        refined, [own, far, many, *inputs], [live, said], show_progress="hidden", api_visibility="private"
    )
    ask.click(forecast, inputs, estimate, show_progress="minimal", api_visibility="private")
    changes = [each.change for each in (model, algorithm, verifier)] + [budget.blur, budget.submit]
    gr.on(
        changes,
        forecast_if_light,
        inputs,
        estimate,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    algorithm.change(
        None,
        algorithm,
        parameters,
        js="(algorithm) => ({algorithm, values: {}})",
        show_progress="hidden",
        api_visibility="private",
    )
    until.change(
        lambda kind: gr.Textbox(visible=kind == "score"),
        until,
        target,
        show_progress="hidden",
        api_visibility="private",
    )
    algorithm.change(
        lambda name: gr.Dropdown(info=about(name)),
        algorithm,
        algorithm,
        show_progress="hidden",
        api_visibility="private",
    )
    tab = Search(live, [prompt, model, algorithm, verifier, budget, seed])

    def restore(request: gr.Request) -> list[Any]:
        return _restored(jobs, tab, request.query_params.get("job"))

    page.load(restore, None, tab.form, show_progress="hidden", api_visibility="private")
    return tab


def _fits(control: gr.Component, value: Any) -> bool:
    """Whether a control can show a value."""
    if not isinstance(control, gr.Dropdown) or control.allow_custom_value:
        return True
    return value in [choice for _, choice in control.choices]


def _config(values: tuple[Any, ...]) -> RunConfig:
    """The settings of the form."""
    prompt, model, algorithm, verifier, budget, seed, until, target, settings, parameters = values
    if until == "score" and not (target or "").strip():
        raise ConfigError(
            "A search that stops at a score must be told it but got none; write it, such as 0.9."
        )
    return config_of(
        prompt=prompt,
        model=model,
        algorithm=algorithm,
        verifier=verifier,
        budget=budget,
        seed=seed,
        until=target if until == "score" else until,
        parameters=parameters_of(algorithm, parameters),
        settings=settings,
    )


def _submit(jobs: Jobs, values: tuple[Any, ...]) -> tuple[Any, str]:
    """Starts a search; the id of its job, or a message."""
    try:
        return jobs.submit(_config(values)).id, ""
    except TTSVisionError as error:
        return gr.skip(), told(error)


def _refine(
    jobs: Jobs, file: str | None, strength: float, n: int, values: tuple[Any, ...]
) -> tuple[Any, str]:
    """Starts the refinement of an uploaded image; the id of its job, or a message."""
    try:
        if file is None:
            raise ConfigError("An image of yours is refined but got none; choose a file.")
        image = read(Path(file))
        if isinstance(image, Video):
            raise ConfigError("An image of yours must be a still one but got a clip; save one of its frames.")
        return jobs.refine_image(image, _config(values), n=int(n), strength=strength).id, ""
    except TTSVisionError as error:
        return gr.skip(), told(error)


def _forecast(jobs: Jobs, values: tuple[Any, ...]) -> str:
    """The forecast of a search, as HTML."""
    try:
        config = _config(("-", *values[1:]))
        return forecast_of(jobs.estimate(config))
    except TTSVisionError as error:
        return told(error)


def _restored(jobs: Jobs, tab: Search, id: str | None) -> list[Any]:
    """The values of the form for the job that the address of the page names."""
    try:
        return tab.values(jobs.get(id).config) if id else [gr.skip()] * len(tab.form)
    except TTSVisionError:
        return [gr.skip()] * len(tab.form)  # the live view says that there is no such job
