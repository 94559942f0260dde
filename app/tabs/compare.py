from tts_vision.app.jobs import Jobs


def add(jobs: Jobs, *rest) -> None:
    import gradio as gr

    with gr.Tab("compare".capitalize(), id="compare"):
        gr.HTML("soon", js_on_load=None)
