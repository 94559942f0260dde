"""The Compare tab: algorithms or verifiers at one budget, side by side."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tts_vision.app.jobs import Jobs
from tts_vision.app.ui_compare import Comparisons, Plan
from tts_vision.app.ui_form import lines_of, model_control, searches, verifier_control
from tts_vision.app.ui_live import TEMPLATE, answered, text_of
from tts_vision.app.ui_words import told
from tts_vision.errors import TTSVisionError

_SCRIPT = "ttsVision.compare(element, server, {watch, props})"
_HINT = "Each algorithm gets the same budget on the same prompts, and a plain sample stands beside them."


def add(jobs: Jobs) -> None:
    """Adds the tab.

    Args:
        jobs: The searches of the server.
    """
    comparisons = Comparisons(jobs)

    def look_at_comparison(request: Any) -> dict[str, Any]:
        return answered(lambda: comparisons.look(text_of(request, "id")))

    def stop_comparison(request: Any) -> dict[str, Any]:
        def stop() -> dict[str, Any]:
            comparisons.stop(text_of(request, "id"))
            return {}

        return answered(stop)

    with gr.Tab("Compare", id="compare"), gr.Row(elem_classes="tv-columns"):
        with gr.Column(scale=2, min_width=320, elem_classes="tv-form"):
            prompts = gr.Textbox(
                label="Prompts", lines=4, max_lines=10, info="One a line.", elem_id="tv-compare-prompts"
            )
            go = gr.Button("Compare", variant="primary", elem_id="tv-compare-go")
            said = gr.HTML("", elem_classes="tv-said", js_on_load=None)
            algorithms = gr.Dropdown(
                searches(),
                value=["best_of_n", "evosearch"],
                multiselect=True,
                allow_custom_value=True,
                label="Algorithms",
                info="Also with parameters, such as zero_order:tau=0.9.",
            )
            verifiers = verifier_control(jobs, several=True, label="Verifiers")
            judge = gr.Textbox(
                label="Judge",
                placeholder="none",
                max_lines=1,
                info="A verifier that no search sees; it judges the best samples at the end.",
            )
            model = model_control(jobs)
            with gr.Row():
                budget = gr.Textbox("8x", label="Budget", info="Of each search.", max_lines=1, min_width=120)
                seeds = gr.Textbox("0", label="Seeds", info="Such as 0-3,7.", max_lines=1, min_width=120)
        with gr.Column(scale=5, min_width=320):
            live = gr.HTML(
                "",
                html_template=TEMPLATE.format(name="The comparison", hint=_HINT),
                js_on_load=_SCRIPT,
                elem_id="tv-compare",
                server_functions=[look_at_comparison, stop_comparison],
                apply_default_css=False,
            )

    def submit(
        prompts: str | None,
        algorithms: list[str],
        verifiers: list[str],
        judge: str | None,
        model: str,
        budget: str,
        seeds: str,
    ) -> tuple[object, str]:
        from tts_vision.cli.settings import read_seeds

        try:
            plan = Plan(
                model=(model or "").strip(),
                prompts=lines_of(prompts),
                algorithms=algorithms,
                verifiers=verifiers,
                evaluator=(judge or "").strip() or None,
                budget=(budget or "").strip(),
                seeds=read_seeds(seeds) or [],
            )
            return comparisons.start(plan), ""
        except TTSVisionError as error:
            return gr.skip(), told(error)

    go.click(
        submit,
        [prompts, algorithms, verifiers, judge, model, budget, seeds],
        [live, said],
        show_progress="hidden",
        api_visibility="private",
    )
