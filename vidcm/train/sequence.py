"""Which ranks have a clip together (`vidcm.models.sequence_parallel`)."""

import torch
import torch.distributed as dist

from vidcm.config import TrainConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.models.backbone import TransformerBackbone
from vidcm.models.sequence_parallel import SequenceGroup
from vidcm.objectives.base import Objective
from vidcm.train.deepspeed_setup import import_deepspeed


def check_sequence(config: TrainConfig, objective: Objective) -> None:
    """Refuse objectives that tokens cannot be split under. Raises UsageError."""
    if config.sequence_parallel > 1 and objective.role_names:
        raise UsageError(
            f"objective {config.objective['name']} trains {', '.join(objective.role_names)} beside "
            "the student, which sequence_parallel does not split; use sequence_parallel=1"
        )


def sequence_group(config: TrainConfig, device: torch.device) -> SequenceGroup | None:
    """The group of this rank, neighbours of each other; None where clips stay whole. Collective."""
    size = config.sequence_parallel
    if size == 1:
        return None
    import_deepspeed(device).init_distributed(verbose=False)
    places = [list(range(i, i + size)) for i in range(0, dist.get_world_size(), size)]
    own, _ = dist.new_subgroups_by_enumeration(places)
    return SequenceGroup(own)


def parallelize(network: Denoiser, group: SequenceGroup) -> None:
    """Split a denoiser's tokens over a group. Raises UsageError where its network cannot be."""
    if not isinstance(network.backbone, TransformerBackbone):
        raise UsageError(
            "sequence_parallel is for denoisers whose backbone has blocks, such as dit; use 1"
        )
    network.backbone.parallelize(group)
