"""PSNR, SSIM and motion against closed forms and plain loops."""

import numpy as np
import pytest
import torch

from vidcm.metrics.fidelity import box_window, psnr, ssim, ssim_map
from vidcm.metrics.motion import motion, motion_ratio


def clips(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_psnr_of_a_known_error():
    truth = clips(3, 5, 17, 13, 3).clamp(0, 245)
    assert psnr(truth + 10, truth) == pytest.approx([20 * np.log10(25.5)] * 3)
    assert psnr(truth, truth).tolist() == [100] * 3
    video = torch.zeros(2, 3, 1, 8, 8)  # in [-1, 1]
    off = torch.stack([video[0] + 0.02, video[1] + 0.2])
    torch.testing.assert_close(psnr(off, video, peak=2), torch.tensor([40.0, 20.0]))


def test_a_mask_leaves_the_error_elsewhere_out():
    truth = clips(2, 3, 7, 5, 3).clamp(0, 245)
    wrong = truth.clone()
    wrong[0, 1, 2, 3], wrong[1, 2] = truth[0, 1, 2, 3] + 10, 0
    mask = torch.zeros(2, 3, 7, 5, 1, dtype=torch.bool)
    mask[:, 1] = True
    masked = psnr(wrong, truth, mask=mask)
    assert masked[0] == pytest.approx(20 * np.log10(25.5) + 10 * np.log10(35)) and masked[1] == 100


def test_box_ssim_of_an_image_with_itself_and_its_negative():
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(ssim_map(x, x, box_window(5), peak=1), torch.ones(2, 3, 12, 12))
    assert ssim_map(x, 1 - x, box_window(5), peak=1).mean() < 0


def test_psnr_and_ssim_are_per_clip_and_fall_with_noise():
    truth = clips(2, 3, 19, 23, 3) // 2 + 60
    noise = torch.randn(truth.shape)
    levels = [(truth + s * noise).clamp(0, 255).to(torch.uint8) for s in (2, 8, 32)]
    for measure in (psnr, ssim):
        scores = np.stack([measure(x, truth) for x in levels])
        assert (np.diff(scores, axis=0) < 0).all()
        alone = np.concatenate([measure(levels[1][i : i + 1], truth[i : i + 1]) for i in range(2)])
        assert alone == pytest.approx(scores[1])


def test_ssim_of_flat_clips_is_its_luminance_term():
    a, b = (torch.full((1, 2, 13, 17, 3), v, dtype=torch.uint8) for v in (90, 140))
    c = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx([(2 * 90 * 140 + c) / (90**2 + 140**2 + c)])
    assert ssim(a, a) == pytest.approx([1])


def test_ssim_equals_the_plain_definition():
    x, y = clips(1, 1, 13, 12, 1), clips(1, 1, 13, 12, 1)
    g = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    w = np.outer(g, g) / g.sum() ** 2
    a, b, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for i in range(3):
        for j in range(2):
            p, q = (v[0, 0, i : i + 11, j : j + 11, 0].double().numpy() for v in (x, y))
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
            cov = (w * (p - mp) * (q - mq)).sum()
            found.append((2 * mp * mq + a) * (2 * cov + b) / (mp**2 + mq**2 + a) / (vp + vq + b))
    assert ssim(x, y) == pytest.approx([np.mean(found)])


@pytest.mark.parametrize("bad", [clips(1, 2, 13, 13, 3).float(), clips(1, 2, 13, 11, 3)])
def test_other_shapes_and_types_are_refused(bad):
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="expected two clips of one dtype"):
            measure(bad, clips(1, 2, 13, 13, 3))


def test_motion_of_a_ramp_a_frozen_clip_and_one_frame():
    ramp = (torch.arange(7) * 11).to(torch.uint8).view(1, 7, 1, 1, 1).expand(2, 7, 5, 3, 3)
    assert motion(ramp).tolist() == [11, 11]
    assert motion(ramp.flip(1)).tolist() == [11, 11]  # uint8 does not wrap around
    assert motion(ramp[:, :1].expand(2, 7, 5, 3, 3)).tolist() == [0, 0]
    assert motion(ramp[:, :1]).tolist() == [0, 0]


def test_ratio_of_means_and_static_truth():
    found = motion_ratio(np.array([1.0, 3.0, 0.5]), np.array([2.0, 2.0, 0.0]))
    assert found.per_clip[:2].tolist() == [0.5, 1.5] and np.isnan(found.per_clip[2])
    assert found.overall == pytest.approx(4.5 / 4) and found.still == 1
    nothing = motion_ratio(np.array([1.0]), np.array([0.0]))
    assert np.isnan(nothing.overall) and nothing.still == 1
