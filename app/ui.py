"""The page of the app: five tabs over the searches of one server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tts_vision.app.jobs import Jobs

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI

TITLE = "tts-vision"
_STATIC = Path(__file__).parent / "static"
_SCRIPTS = (
    "base",
    "curve",
    "tree",
    "tiles",
    "detail",
    "refine",
    "follow",
    "parameters",
    "panel",
    "drafts",
    "compare",
    "gallery",
)


def build(jobs: Jobs) -> gr.Blocks:
    """The page.

    Args:
        jobs: The searches of the server.
    """
    import gradio as gr

    from tts_vision.app.tabs import compare, draft, gallery, score, search

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_read("header.html"), apply_default_css=False, js_on_load=None)
        with gr.Tabs(elem_id="tv-tabs"):
            searching = search.add(jobs, page)
            drafts = draft.add(jobs)
            compare.add(jobs)
            gallery.add(jobs, searching, drafts)
            score.add(jobs)
    return page


def looks() -> dict[str, Any]:
    """Style and scripts of the page, as `gradio.mount_gradio_app` and `gradio.Blocks.launch` take them."""
    import gradio as gr

    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    theme = gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", radius_size="md", font=fonts, font_mono=mono
    ).set(
        # Gradio's own are too pale to read on white
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
    )
    scripts = "\n".join(_read(f"{name}.js") for name in _SCRIPTS)
    return {
        "theme": theme,
        # not as css, which Gradio rewrites: it splits selectors such as :is(td, th) at their commas
        "head": f"<style>\n{_read('page.css')}\n</style>\n<script>\n{scripts}\n</script>",
        "footer_links": [],
        "run_history": False,
    }


def mount(server: FastAPI, jobs: Jobs, *, path: str = "/", max_file_size: str = "64mb") -> FastAPI:
    """Serves the page.

    Args:
        server: The server; routes that it has already come before the page.
        jobs: Its searches.
        path: Where the page is.
        max_file_size: The largest file that the Score tab takes, such as ``64mb``.
    """
    import gradio as gr

    return gr.mount_gradio_app(
        server, build(jobs), path=path, max_file_size=max_file_size, show_error=True, **looks()
    )


def _read(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")
