"""vidcm: few-step consistency models from video diffusion models.

`VideoPipeline` is the Python API, `load_video` reads clips for its `edit`; `vidcm --help` lists the
commands. Importing the package is quick: torch comes with the first name that needs it.
"""

from typing import TYPE_CHECKING

from vidcm.version import __version__

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline as VideoPipeline
    from vidcm.video_input import load_video as load_video

__all__ = ["VideoPipeline", "__version__", "load_video"]


def __getattr__(name: str) -> object:
    if name == "VideoPipeline":
        from vidcm.pipeline import VideoPipeline

        return VideoPipeline
    if name == "load_video":
        from vidcm.video_input import load_video

        return load_video
    raise AttributeError(f"module 'vidcm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
