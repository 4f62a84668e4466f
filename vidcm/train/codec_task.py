"""Training a codec: previews of reconstructions, and latents that are whitened at the end."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.config import TrainConfig
from vidcm.data.batch import Dataset
from vidcm.errors import UsageError
from vidcm.media.contact_sheet import contact_sheet
from vidcm.media.pixels import to_frames, to_video
from vidcm.metrics.fidelity import psnr
from vidcm.objectives.autoencoding import Autoencoding
from vidcm.registry import build
from vidcm.train.loop import Task, Weights

PREVIEW_SEED = 2**31  # a stretch of the data that training does not reach
PCA_SAMPLES, WHITENING_SAMPLES, BATCH = 128, 1024, 32


def codec_task(config: TrainConfig, model: CausalVAE, data: Dataset, device: torch.device) -> Task:
    """Build the task of a codec.

    Args:
        config: Of the run.
        model: The codec, on `device`; it starts from the data's principal axes if not from `init`.
        data: A data set of frames.
        device: Of the model.

    Raises:
        UsageError: The data have no frames, or the objective contradicts the config.
    """
    objective: Autoencoding = build("objective", config.objective)
    objective.check(config)
    if objective.decoder_only:
        model.encoder.requires_grad_(False)
    frames = data.batch(PREVIEW_SEED, range(8)).frames
    if frames is None:
        raise UsageError(
            f"a codec is trained on frames, and the data {config.data['name']} have none; use the "
            "data lpc or folder"
        )
    video = to_video(frames)
    if not config.init:
        count = min(PCA_SAMPLES, data.size or PCA_SAMPLES)
        model.init_from_pca(_video(data, range(count)).to(device))

    def copy_with(weights: Weights) -> CausalVAE:
        copy: CausalVAE = build("model", config.model)
        copy.load_state_dict(weights)
        return copy

    @torch.no_grad()
    def preview(weights: Weights, path: Path) -> dict[str, float]:
        copy = copy_with(weights)
        rebuilt = copy.reconstruct(copy.posterior(video)[0]).clamp(-1, 1)
        pairs = zip(frames.numpy()[:4], to_frames(rebuilt).numpy()[:4], strict=True)
        contact_sheet([[a, b] for a, b in pairs], None, path, scale=2, overwrite=True)
        return {"preview/psnr": float(psnr(rebuilt, video, peak=2).mean())}

    def finish(weights: Weights) -> Weights:
        # A new decoder leaves the axes and scale of the latents as they are.
        return weights if objective.decoder_only else whitened(copy_with(weights), data)

    return Task(model, objective, data, preview, finish)


@torch.no_grad()
def whitened(codec: CausalVAE, data: Dataset) -> Weights:
    """Return a codec's weights after whitening its latents by samples of the data.

    A data set of fewer clips than WHITENING_SAMPLES is read once.
    """
    count = min(WHITENING_SAMPLES, data.size or WHITENING_SAMPLES)
    posteriors: list[tuple[Tensor, Tensor]] = []
    with tqdm(total=count, unit="clip", desc="whitening the latents", mininterval=2) as bar:
        for start in range(0, count, BATCH):
            places = range(start, min(start + BATCH, count))
            posteriors.append(codec.posterior(_video(data, places)))
            bar.update(len(places))
    mean, logvar = (torch.cat(parts) for parts in zip(*posteriors, strict=True))
    codec.whiten(mean, logvar)
    return codec.state_dict()


def _video(data: Dataset, places: range) -> Tensor:
    frames = data.batch(PREVIEW_SEED + 1, places).frames
    assert frames is not None
    return to_video(frames)
