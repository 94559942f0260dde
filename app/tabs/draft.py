"""The Draft tab: many cheap previews first, and only the chosen ones are finished."""

from __future__ import annotations

import gradio as gr

from tts_vision.app.jobs import Jobs
from tts_vision.app.ui_form import config_of, model_control, verifier_control
from tts_vision.app.ui_live import live_view
from tts_vision.app.ui_words import told
from tts_vision.errors import TTSVisionError

_SCRIPT = "ttsVision.drafts(element, server, {watch, props, trigger, events: ['open']})"
_HINT = "Write a prompt and press Draft: many unfinished previews appear here, each with a number."


def add(jobs: Jobs) -> gr.HTML:
    """Adds the tab; returns its live view, whose value is the id of the job that it shows.

    Args:
        jobs: The searches of the server.
    """
    with gr.Tab("Draft", id="draft"), gr.Row(elem_classes="tv-columns"):
        with gr.Column(scale=2, min_width=320, elem_classes="tv-form"):
            prompt = gr.Textbox(label="Prompt", lines=2, max_lines=6, elem_id="tv-draft-prompt")
            go = gr.Button("Draft", variant="primary", elem_id="tv-draft-go")
            said = gr.HTML("", elem_classes="tv-said", js_on_load=None)
            number = gr.Slider(
                4, 128, 32, step=4, label="How many drafts", info="Each costs only its first steps."
            )
            steps = gr.Textbox(
                label="Steps of each draft",
                placeholder="a quarter of all",
                max_lines=1,
                info="More steps: clearer previews, and slower.",
            )
            model = model_control(jobs)
            verifier = verifier_control(jobs)
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)
                budget = gr.Textbox(label="Budget", placeholder="for all of them", max_lines=1, min_width=120)
        with gr.Column(scale=5, min_width=320):
            live = live_view(jobs, "Drafts", _HINT, "tv-drafts", script=_SCRIPT)

    def submit(
        prompt: str,
        model: str,
        verifier: str,
        seed: float,
        budget: str | None,
        number: int,
        steps: str | None,
    ) -> tuple[object, str]:
        try:
            config = config_of(
                prompt=prompt,
                model=model,
                algorithm="draft",
                verifier=verifier,
                budget=(budget or "").strip() or f"{number}x",
                seed=seed,
                parameters={"n": str(number), "steps_done": steps or ""},
            )
            return jobs.submit(config).id, ""
        except TTSVisionError as error:
            return gr.skip(), told(error)

    gr.on(
        [go.click, prompt.submit],
        submit,
        [prompt, model, verifier, seed, budget, number, steps],
        [live, said],
        show_progress="hidden",
        api_visibility="private",
    )
    return live
