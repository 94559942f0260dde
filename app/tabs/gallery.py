"""The Gallery tab: past runs of the output folder, to open, go on with, make again and take home."""

from __future__ import annotations

from typing import Any

import gradio as gr

from tts_vision.app.jobs import Jobs
from tts_vision.app.tabs.search import Search
from tts_vision.app.ui_live import TEMPLATE, LiveView, answered, text_of
from tts_vision.app.ui_runs import Runs
from tts_vision.app.ui_words import for_artists
from tts_vision.errors import TTSVisionError

_SCRIPT = "ttsVision.gallery(element, server, {watch, trigger, events: ['open', 'resume', 'again']})"
_HINT = "No runs yet: everything that you search for is kept here."


def add(jobs: Jobs, search: Search, drafts: gr.HTML) -> None:
    """Adds the tab.

    Args:
        jobs: The searches of the server.
        search: The Search tab, which shows the runs that are opened.
        drafts: The live view of drafts, which shows those.
    """
    runs = Runs(jobs)

    def page_of(request: Any) -> dict[str, Any]:
        first = request.get("first")
        filters = (text_of(request, "text"), text_of(request, "model"), text_of(request, "algorithm"))
        return runs.list(*filters, first=first if isinstance(first, int) else 0)

    with gr.Tab("Gallery", id="gallery") as tab:
        gallery = gr.HTML(
            "",
            html_template=TEMPLATE.format(name="The gallery", hint=_HINT),
            js_on_load=_SCRIPT,
            elem_id="tv-gallery",
            server_functions=[*_functions(runs, page_of), _refining(jobs)],
            apply_default_css=False,
        )
        visits = gr.State(0)

    def visited(number: int) -> tuple[int, str]:
        return number + 1, str(number + 1)

    tab.select(visited, visits, [visits, gallery], show_progress="hidden", api_visibility="private")

    def opened(id: str) -> list[Any]:
        config = jobs.get(id).config
        if config.algorithm == "draft":
            return [gr.skip(), id, *[gr.skip()] * len(search.form)]
        return [id, gr.skip(), *search.values(config)]

    def on_open(event: gr.EventData) -> list[Any]:
        return _told(lambda id: opened(id), event)

    def on_resume(event: gr.EventData) -> list[Any]:
        def resume(id: str) -> list[Any]:
            jobs.get(id).resume()
            return opened(id)

        return _told(resume, event)

    def on_again(event: gr.EventData) -> list[Any]:
        return _told(lambda id: opened(runs.again(id)), event)

    outputs = [search.live, drafts, *search.form]
    for listener, function in (
        (gallery.open, on_open),
        (drafts.open, on_open),
        (gallery.resume, on_resume),
        (gallery.again, on_again),
    ):
        listener(function, None, outputs, show_progress="hidden", api_visibility="private")


def _functions(runs: Runs, page_of: Any) -> list[Any]:
    """What the script of the gallery may ask the server."""

    def list_runs(request: Any) -> dict[str, Any]:
        return answered(lambda: page_of(request))

    def recipe(request: Any) -> dict[str, Any]:
        return answered(lambda: runs.recipe(text_of(request, "job")))

    def file(request: Any) -> dict[str, Any]:
        return answered(lambda: runs.file(text_of(request, "job"), text_of(request, "name")))

    def replay_run(request: Any) -> dict[str, Any]:
        return answered(lambda: runs.replay(text_of(request, "job")))

    return [list_runs, recipe, file, replay_run]


def _refining(jobs: Jobs) -> Any:
    """What the script of the gallery asks to refine the best sample of a run."""
    view = LiveView(jobs)

    def refine_run(request: Any) -> dict[str, Any]:
        return view.act(request)

    return refine_run


def _told(function: Any, event: gr.EventData) -> list[Any]:
    """What a function makes of the job that an event names; its refusal as a message of the page."""
    import html

    try:
        return function(text_of(event._data, "job"))
    except TTSVisionError as error:
        raise gr.Error(html.escape(for_artists(str(error))), print_exception=False) from None
