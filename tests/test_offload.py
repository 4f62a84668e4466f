"""Memory savers: what is on the device while it works, and clips that stay the same."""

import pytest
import tiny
import torch

from vidcm.diffusion.base import Cond
from vidcm.errors import UsageError
from vidcm.models.offload import Offload
from vidcm.pipeline import VideoPipeline

CALL = dict(num_inference_steps=2, guidance_scale=2.0, seed=3)


@pytest.fixture
def folder(tmp_path):
    return tiny.pipeline(tmp_path)


def spied(pipe: VideoPipeline, monkeypatch, roles=("student",)) -> list[tuple[str, str]]:
    """(component, "in" or "out") as components move, and (component, "works") as they work."""
    log: list[tuple[str, str]] = []
    parts = {"codec": pipe.codec.codec}  # type: ignore[attr-defined]
    for role in roles:
        parts |= {"text": pipe.model(role).conditioner, role: pipe.model(role).backbone}
    offload = pipe._offload
    assert offload is not None
    names = {id(part): name for name, part in parts.items()}
    use = offload.use

    def watched(component) -> None:
        before = offload._there
        use(component)
        if before is not component:
            if before is not None:
                log.append((names[id(before)], "out"))
            log.append((names[id(component)], "in"))

    monkeypatch.setattr(offload, "use", watched)
    for name, part in parts.items():
        if name == "codec":
            continue
        part.register_forward_hook(lambda *_, name=name: log.append((name, "works")))
    return log


def test_one_component_at_a_time_and_the_same_clips(folder, monkeypatch) -> None:
    plain = VideoPipeline.from_pretrained(folder, device="cpu")("an orc walks", **CALL)
    pipe = VideoPipeline.from_pretrained(folder, device="cpu")
    pipe.enable_model_cpu_offload("cpu")
    log = spied(pipe, monkeypatch)
    clips = pipe("an orc walks", **CALL)
    assert (clips.frames == plain.frames).all()
    assert log == [
        ("text", "in"),
        ("text", "works"),
        ("text", "out"),
        ("student", "in"),
        ("student", "works"),
        ("student", "works"),
        ("student", "out"),
        ("codec", "in"),
    ]


def test_components_are_moved_whole() -> None:
    moved: list[tuple[str, str]] = []

    class Part(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def to(self, device):  # type: ignore[override]
            moved.append((self.name, str(device)))
            return self

        def forward(self) -> None: ...

    offload, (a, b) = Offload(torch.device("cuda", 0)), (Part("a"), Part("b"))
    for part in (a, b):
        offload.add(part, when_called=True)
    assert moved == [("a", "cpu"), ("b", "cpu")]
    moved.clear()
    for part in (a, a, b, a):
        part()
    assert moved == [
        ("a", "cuda:0"),
        *[("a", "cpu"), ("b", "cuda:0")],
        ("b", "cpu"),
        ("a", "cuda:0"),
    ]


def test_edits_and_negative_prompts_of_an_offloaded_pipeline(folder) -> None:
    plain = VideoPipeline.from_pretrained(folder, device="cpu")
    pipe = VideoPipeline.from_pretrained(folder, device="cpu")
    pipe.enable_model_cpu_offload("cpu")
    for options in ({}, {"negative_prompt_method": "nag"}, {"use_teacher": True}):
        call = CALL | {"negative_prompt": "a man"} | options
        assert (pipe("an orc", **call).frames == plain("an orc", **call).frames).all()
    clip = plain("an orc walks", **CALL).frames[0]
    edits = (p.edit("extend", [clip], "an orc walks", seed=1).frames for p in (plain, pipe))
    first, second = edits
    assert (first == second).all()
    with pytest.raises(UsageError, match="the pipeline anew"):
        pipe.to("cpu")


def test_prompts_encoded_once_are_enough(folder) -> None:
    pipe = VideoPipeline.from_pretrained(folder, device="cpu")
    prompt, negative = (pipe.encode_prompt(text) for text in ("an orc walks", "a man"))
    plain = pipe("an orc walks", negative_prompt="a man", complete_prompt=False, **CALL)
    pipe.model("student").conditioner.forward = None  # it must not be asked again
    for method in ("nag",):
        found = pipe(
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            negative_prompt_method=method,
            **CALL,
        )
        assert found.frames.shape == plain.frames.shape
    two = Cond(torch.cat([negative.tokens] * 2), torch.cat([negative.mask] * 2))
    with pytest.raises(UsageError, match="has 2 prompts"):
        pipe(prompt_embeds=prompt, negative_prompt_embeds=two, **CALL)


def test_a_codec_without_tiles_says_so(folder) -> None:
    with pytest.raises(UsageError, match="in pieces already"):
        VideoPipeline.from_pretrained(folder, device="cpu").enable_vae_tiling()
