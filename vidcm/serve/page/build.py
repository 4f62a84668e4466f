"""The whole page. Importing this imports gradio, which takes seconds."""

import os
from collections.abc import Sequence
from pathlib import Path

# Before gradio reads them.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from fastapi import FastAPI

from vidcm.serve.page.compare import CompareTab
from vidcm.serve.page.edit import EditTab
from vidcm.serve.page.generate import GenerateTab, examples_of
from vidcm.serve.page.mount import PATH
from vidcm.serve.page.runs import RunFolders, RunsTab
from vidcm.serve.service import JobService

CLEAN_SECONDS, KEEP_SECONDS = 60, 3600  # of uploads that the page keeps
CSS = Path(__file__).parent / "page.css"
FONTS = ["system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]


def build(service: JobService, runs: Sequence[Path], uploads: Path) -> FastAPI:
    """The page as an application with its routes below `PATH`.

    Args:
        service: Makes the clips.
        runs: Folders with training runs that may be looked into.
        uploads: Folder for files that browsers upload.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    page = gr.Blocks(
        title="vidcm", analytics_enabled=False, delete_cache=(CLEAN_SECONDS, KEEP_SECONDS)
    )
    examples = examples_of(service)
    with page:
        gr.HTML("<h1>vidcm</h1>", elem_classes="title")
        with gr.Tabs() as tabs:
            with gr.Tab("Generate"):
                GenerateTab(service, page, examples)
            with gr.Tab("Edit") as tab:
                EditTab(service, page, tab)
            with gr.Tab("Compare"):
                CompareTab(service, page, [prompt for prompt, _ in examples])
            if runs:
                with gr.Tab("Runs") as tab:
                    RunsTab(RunFolders(runs), tabs, tab)
    page.queue(api_open=False, default_concurrency_limit=8)
    theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", font=FONTS, font_mono=MONO, radius_size="md"
    ).set(  # gradio's own greys are too faint to be read
        body_text_color_subdued="*neutral_600",
        block_title_text_color="*neutral_600",
        block_label_text_color="*neutral_600",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None, docs_url=None, redoc_url=None),
        page,
        path=PATH,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        allowed_paths=[],
        max_file_size=service.limits.max_upload,
        show_error=True,
        theme=theme,
        css_paths=CSS,
    )
    page.has_launched = True  # or gradio lets events name any file; `events.py` does not either way
    return app
