"""Parts that do not fit together are refused when a run is made, with both values and the fix."""

import resource
import signal
from pathlib import Path

import pytest
import tiny
import torch

from vidcm.config import TrainConfig
from vidcm.errors import UsageError, VidcmError
from vidcm.store import read_card
from vidcm.train import checkpoint
from vidcm.train.launch import launch
from vidcm.train.tasks import make_task

CPU = torch.device("cpu")
TUNING = {"name": "consistency_tuning"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and latents of their codec."""
    folder = tmp_path_factory.mktemp("parts")
    tiny.parts(folder)
    tower = {**tiny.denoiser(), "conditioner": {**tiny.TEXT, "buckets": 101}}
    tiny.save(folder / "other_tower", tower)
    clips = [(torch.randn(8, 5, 2, 2, 3), [["a man walks"]] * 8)]
    codec = read_card(folder / "codec")["sha256"]
    tiny.latent_cache(folder / "latents", clips, codec)
    return folder


def config(folder: Path, **changes) -> TrainConfig:
    """Of a student that would train. Paths are relative to `folder`."""
    keys = dict(model=tiny.denoiser(guidance_embed=True), objective=TUNING, teacher="teacher")
    keys |= dict(init="teacher", codec="codec", output=str(folder / "run"), steps=1, batch_size=4)
    keys |= dict(data={"name": "latents", "path": str(folder / "latents")}, **changes)
    named = {
        k: str(folder / keys[k]) for k in ("teacher", "init", "codec", "init_text") if keys.get(k)
    }
    return TrainConfig(**{**keys, **named})


def test_what_fits_is_made(folder: Path) -> None:
    made = make_task(config(folder), CPU)
    assert made.objective.teacher is not None
    # The default of an option is that option: the tower is the same.
    spec = tiny.denoiser(guidance_embed=True)
    least = {k: v for k, v in tiny.TEXT.items() if k != "num_layers"}
    tiny.save(folder / "deep", {**tiny.denoiser(), "conditioner": least})
    spec["conditioner"] = {**least, "num_layers": 3}
    make_task(config(folder, model=spec, teacher="deep", init="deep"), CPU)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"teacher": "student"}, "teacher .*student is a student: it takes a guidance scale"),
        (
            {"model": tiny.denoiser(), "init": "teacher"},
            "set model.backbone.guidance_embed to true",
        ),
        ({"teacher": "other_tower"}, "text tower has buckets=101, the student's 127; set model.c"),
        ({"init": "codec"}, "init .*codec holds a CausalVAE, and the model is a Denoiser"),
        (
            {"init_text": "codec"},
            "init_text .*codec holds no text tower; give a caption reader's folder",
        ),
        ({"objective": {"name": "flow_matching"}}, "flow_matching takes no teacher; leave out"),
        ({"objective": {"name": "autoencoding"}}, "autoencoding trains a CausalVAE, and model den"),
        ({"objective": {"name": "caption_naming"}}, "caption_naming trains a CaptionReader"),
        (
            {"model": tiny.CODEC, "init": None, "teacher": None},
            "objective consistency_tuning trains a Denoiser, and model causal_vae is a CausalVAE",
        ),
        (
            {"model": tiny.CODEC, "init": None, "teacher": None}
            | {"objective": {"name": "autoencoding"}},
            "a codec is trained on frames, and the data latents have none; use the data lpc or",
        ),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, changes: dict, message: str) -> None:
    """Cases: P13."""
    with pytest.raises(UsageError, match=message):
        make_task(config(folder, **changes), CPU)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases: K12."""
    chosen = config(folder, gradient_accumulation_steps=3, codec="nowhere")
    with pytest.raises(UsageError, match="batch_size 4 does not divide into 3 micro-batches"):
        launch(chosen, "cpu")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="batch_size 4 does not divide into 6 micro-batches"):
        launch(config(folder, gradient_accumulation_steps=2, codec="nowhere"), "cpu")
    assert not (folder / "run").exists()


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path: Path) -> None:
    with checkpoint.claimed(tmp_path / "run"):
        with pytest.raises(UsageError, match="another process is writing to .*run; wait for it"):
            with checkpoint.claimed(tmp_path / "run"):
                pass
        with checkpoint.claimed(tmp_path / "other"):
            pass
    with checkpoint.claimed(tmp_path / "run"):
        pass


class Harmful:
    """Writes a file when it is read back."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_a_state_that_is_no_plain_data_is_refused_and_not_run(tmp_path: Path) -> None:
    """Cases: P05."""
    mark = tmp_path / "mark"
    checkpoint.save(tmp_path, 3, {"model": Harmful(mark)}, {}, keep=2)
    with pytest.raises(VidcmError, match="state.pt holds no state of a run .*; delete .*step-0000"):
        checkpoint.read(checkpoint.folder_of(tmp_path, 3))
    assert not mark.exists()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"model": torch.zeros(9)}, {}, keep=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, before[1]))
    try:
        with pytest.raises(VidcmError, match="cannot write .*step-00000002: File too large; when"):
            checkpoint.save(tmp_path, 2, {"model": torch.zeros(2**14)}, {}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert checkpoint.newest(tmp_path) == checkpoint.folder_of(tmp_path, 1)


def test_a_run_s_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(UsageError, match="a file is in the way; choose another output"),
            checkpoint.claimed(output),
        ):
            pass
    with (
        pytest.raises(VidcmError, match="cannot make the folder /proc/run of output"),
        checkpoint.claimed(Path("/proc/run")),
    ):
        pass


@pytest.mark.parametrize("manifest", ["[]", '{"sha256": 3}', '{"sha256": [1]}', 100_000 * "["])
def test_a_manifest_of_another_form_is_passed_over(tmp_path: Path, manifest: str) -> None:
    folder = checkpoint.folder_of(tmp_path, 3)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest)
    assert checkpoint.newest(tmp_path) is None
