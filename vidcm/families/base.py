"""What differs between families of public video models, in one object each.

A family is known by the class names in the `config.json` of diffusers' component folders. Networks,
codecs and text towers are diffusers' and transformers' own classes; nothing of them is copied.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from vidcm.diffusion.base import Cond
from vidcm.diffusion.parameterization import FlowClock, FlowPrediction, Parameterization
from vidcm.errors import UsageError
from vidcm.families.control import ControlSource
from vidcm.families.schedule import resolution_shift
from vidcm.models.sequence_parallel import SequenceGroup
from vidcm.registry import TABLE, lookup
from vidcm.schema import suggest

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

NEEDS_EXTRA = "public models need diffusers: pip install 'vidcm[diffusers]' ({})"


class Family(ABC):
    """One architecture with its codec, its text and its calls.

    Attributes:
        name: As in registry and messages.
        pipeline: diffusers' pipeline class, which encodes prompts.
        text_length: Tokens of a prompt, as the pipeline's call has them (its `encode_prompt` may
            default to fewer).
        text_mask: Whether the network is told which tokens are padding.
        codec: diffusers' class of the codec.
        latent_step: Clips have `k * latent_step + 1` latent frames: the codec changes the number of
            frames of others silently.
        blocks: Attribute of the network that holds its blocks.
        text_blocks: Attributes of the network whose blocks attend to text.
        text_attention: Attribute of a block that is its attention to text; None where text and
            video attend together.
        times_per_frame: Whether the network takes a time for each token.
        splits: Whether sequence parallelism knows the inputs of its blocks.
        two_times: Whether the network takes a second time, the target of a jump.
        defaults: Frames, height, width and frames per second of the pipeline's call.
        guidance_scale: Of the pipeline's call.
    """

    name: ClassVar[str]
    pipeline: ClassVar[str]
    text_length: ClassVar[int]
    text_mask: ClassVar[bool] = False
    codec: ClassVar[str]
    latent_step: ClassVar[int] = 1
    blocks: ClassVar[str] = "blocks"
    text_blocks: ClassVar[tuple[str, ...]] = ("blocks",)
    text_attention: ClassVar[str | None] = "attn2"
    times_per_frame: ClassVar[bool] = False
    two_times: ClassVar[bool] = False
    defaults: ClassVar[tuple[int, int, int, float]]
    guidance_scale: ClassVar[float]
    splits: ClassVar[bool] = False

    def parameterization(self, scheduler: dict[str, Any]) -> Parameterization:
        """What the network reads and predicts.

        Args:
            scheduler: The `scheduler_config.json` of the pipeline; {} if there is none.
        """
        return FlowPrediction(FlowClock(scale=float(scheduler.get("num_train_timesteps", 1000))))

    def shift(self, scheduler: dict[str, Any]) -> float:
        """Resolution shift of the scheduler's times."""
        return resolution_shift(scheduler)

    def patch_size(self, config: dict[str, Any]) -> tuple[int, int, int]:
        """Latents `(t, h, w)` of a token."""
        return tuple(config["patch_size"])

    @abstractmethod
    def forward(
        self, network: Any, x: Tensor, time: Tensor, cond: Cond, time_to: Tensor | None
    ) -> Tensor:
        """The network's output, `(b c t h w)`.

        Args:
            network: diffusers' transformer.
            x: Its input `(b c t h w)`.
            time: Times on its clock, `(b,)` or per frame `(b, t)`.
            cond: Text, padded to `text_length`.
            time_to: The second time of a network with two.
        """

    @abstractmethod
    def latent_statistics(self, codec: Any) -> tuple[Tensor, Tensor]:
        """Mean and deviation of raw latents, of each channel `(c,)` or of all `(1,)`."""

    @abstractmethod
    def codec_sizes(self, codec: Any) -> tuple[int, int, int]:
        """Latent channels, frames of a latent and pixels of a latent."""

    @abstractmethod
    def text_width(self, config: dict[str, Any]) -> int:
        """Width of the text tokens that a network with this config reads."""

    def latent_channels(self, config: dict[str, Any]) -> int:
        """Channels of the latents that a network with this config makes."""
        return config.get("out_channels") or config["in_channels"]

    def control(self, config: dict[str, Any], root: Path | None) -> ControlSource | None:
        """What a network is given beside text; None for text alone.

        Args:
            config: Of the network.
            root: Its pipeline's folder, if it has one.

        Raises:
            UsageError: It reads something that vidcm cannot make.
        """
        return None

    def own_inputs(self, group: SequenceGroup, inputs: tuple) -> tuple:
        """What a block reads beside tokens, for the tokens of this rank; of families that split."""
        raise NotImplementedError

    def decode(self, codec: Any, raw: Tensor) -> Tensor:
        """The video of raw latents."""
        return codec.decode(raw, return_dict=False)[0]


def find_family(class_name: str) -> Family:
    """The family of a class of diffusers. Raises UsageError for those that vidcm does not know."""
    known = TABLE["family"]
    if class_name not in known:
        raise UsageError(
            f"vidcm has no family for diffusers' {class_name}{suggest(class_name, list(known))}"
        )
    return lookup("family", class_name)()


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """No progress bars of diffusers and transformers inside the block."""
    library_class("DiffusionPipeline")  # refuses where there is none
    loggers = [import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in loggers:
            logger.enable_progress_bar()


def library_class(name: str, library: str = "diffusers") -> Any:
    """A class of diffusers or transformers.

    Raises:
        UsageError: The library is not installed, or is older than the class.
    """
    try:
        module = import_module(library)
        import_module("ftfy")  # pipelines call it without checking
    except ImportError as error:
        raise UsageError(NEEDS_EXTRA.format(error)) from None
    try:
        return getattr(module, name)
    except (AttributeError, ImportError) as error:
        raise UsageError(
            f"{library} {module.__version__} has no usable {name} ({error}); upgrade it: "
            "pip install -U 'vidcm[diffusers]'"
        ) from None
