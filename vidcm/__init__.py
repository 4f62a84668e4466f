"""vidcm: few-step consistency models from video diffusion models.

`VideoPipeline` is the way in from Python; `vidcm --help` lists the commands. Importing the package
imports nothing heavy: torch comes with the first name that needs it.
"""

from typing import TYPE_CHECKING

from vidcm.version import __version__

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline as VideoPipeline

__all__ = ["VideoPipeline", "__version__"]


def __getattr__(name: str) -> object:
    if name == "VideoPipeline":
        from vidcm.pipeline import VideoPipeline

        return VideoPipeline
    raise AttributeError(f"module 'vidcm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
