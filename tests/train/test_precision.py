"""Which precision a run computes in, and that bf16 is close to fp32."""

from pathlib import Path

import pytest
import tiny
import torch
from train import cells

from vidcm.train import precision
from vidcm.train.engine import LocalEngine

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "flags, fast",
    [("fpu avx512f avx512_bf16", True), ("fpu amx_tile amx_bf16", True), ("fpu avx512f", False)],
)
def test_a_cpu_has_bf16_by_its_flags(tmp_path: Path, flags: str, fast: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16x\n")
    assert precision.has_bf16(CPU, tmp_path / "cpuinfo") == fast
    assert not precision.has_bf16(CPU, tmp_path / "nowhere")


@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_bf16_where_it_is_fast(monkeypatch, capsys, fast: bool) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: fast)
    assert precision.resolve("auto", CPU) == ("bf16" if fast else "fp32")
    assert precision.resolve("fp32", CPU) == "fp32"
    assert capsys.readouterr().err == ""
    assert precision.resolve("bf16", CPU) == "bf16"
    assert ("slower than fp32" in capsys.readouterr().err) == (not fast)


def test_a_student_in_bf16_trains_close_to_fp32(tmp_path: Path) -> None:
    """Losses within 2 %, of a denoiser and its teacher in one process."""
    tiny.save(tmp_path, tiny.denoiser())
    losses = []
    for name in ("fp32", "bf16"):
        config = cells.settings("latent_consistency", tmp_path, 0, False, precision=name)
        steps = cells.Cell(config, LocalEngine)
        losses.append([loss for _, loss, _ in steps.run(again=False) + steps.run(again=False)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[1] != losses[0]
