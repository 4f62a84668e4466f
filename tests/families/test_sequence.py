"""Tokens of public networks split over two ranks: predictions, derivatives and gradients."""

import os
import subprocess
import sys

import pytest
import torch
from families import sequence

from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.store import load_model


def on_two_ranks(base, out) -> list[dict[str, torch.Tensor]]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, sequence.__file__, str(base), str(out)], check=True, env=environment)
    return torch.load(out, weights_only=True)


def test_two_ranks_equal_one_process(public, tmp_path) -> None:
    base = public("wan") / "transformer"
    for result, per_frame in zip(
        on_two_ranks(base, tmp_path / "found.pt"), (False, True), strict=True
    ):
        model = load_model(base, Denoiser)
        expected = sequence.found(model, per_frame=per_frame, checkpointing=False)
        assert result.keys() == expected.keys() and len(expected) > 30
        for name, value in expected.items():
            scale = float(value.abs().max())
            assert torch.allclose(result[name], value, rtol=1e-5, atol=1e-5 * scale), name


@pytest.mark.parametrize("name", ["ltx", "cogvideox", "anyflow"])
def test_other_families_are_refused(public, name) -> None:
    teacher = load_model(public(name) / "transformer", Denoiser)
    with pytest.raises(UsageError, match=f"cannot split the tokens of {name}"):
        teacher.backbone.parallelize(None)
