"""The Score tab: images and clips that somebody brings, judged by any verifiers."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from tts_vision.app.jobs import Jobs
from tts_vision.app.ui_form import verifier_control
from tts_vision.app.ui_scores import score_uploads, table
from tts_vision.app.ui_words import noted, told
from tts_vision.errors import TTSVisionError

_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".mov", ".webm", ".mkv"]


def add(jobs: Jobs) -> None:
    """Adds the tab.

    Args:
        jobs: The searches of the server.
    """
    with gr.Tab("Score", id="score"), gr.Row(elem_classes="tv-columns"):
        with gr.Column(scale=2, min_width=320, elem_classes="tv-form"):
            files = gr.File(
                label="Images or clips",
                file_count="multiple",
                file_types=_TYPES,
                height=160,
                elem_id="tv-score-files",
            )
            prompt = gr.Textbox(
                label="Prompt", lines=2, info="What they should show.", elem_id="tv-score-prompt"
            )
            verifiers = verifier_control(jobs, several=True, label="Verifiers")
            go = gr.Button("Score", variant="primary", elem_id="tv-score-go")
        with gr.Column(scale=5, min_width=320):
            scores = gr.HTML(
                noted("The scores appear here; a verifier that checks demands names those that are not met."),
                elem_id="tv-scores",
                js_on_load=None,
                apply_default_css=False,
                min_height=300,
            )

    def score(paths: list[str] | None, prompt: str | None, verifiers: list[str]) -> str:
        try:
            found = score_uploads(jobs, [Path(path) for path in paths or ()], prompt or "", verifiers)
            return table(found, verifiers)
        except TTSVisionError as error:
            return told(error)

    go.click(score, [files, prompt, verifiers], scores, api_visibility="private")
