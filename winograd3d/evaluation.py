"""The protocol of section 6: accuracy of centre clips, and of videos by ten clips at even steps."""

from common.labelled import test_batches
from common.metrics import Accuracy

import torch
from torch import Tensor, nn

from winograd3d.data import Clips
from winograd3d.video import video_scores


class EvenClips:
    """A set of which a sample is all its clips: [B, K, C, T, H, W]."""

    def __init__(self, videos, count: int):
        self.videos, self.count, self.labels = videos, count, videos.labels

    def __len__(self) -> int:
        return len(self.videos)

    def fetch(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Clips and labels of int64 positions [B]."""
        return self.videos.clips(index, self.count), self.labels[index]


@torch.no_grad()
def evaluate(
    network: nn.Module, test, settings: Clips, device: torch.device, autocast_enabled: bool = False, clips: int = 1
) -> dict[str, float]:
    """Percentages over the test set of all ranks: clip_top1 and clip_top5 by one centre clip of each video.

    With clips > 1 also video_top{1,5}_prob and video_top{1,5}_logit: softmax or logits averaged over that many clips.
    """
    was_training = network.training
    network.eval()

    def logits(batch: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast_enabled):
            return network(batch).float()

    centre = Accuracy()
    for batch, labels in test_batches(test, settings, device):
        centre.update(logits(batch), labels)
    metrics = {f"clip_{name}": value for name, value in centre.result().items()}
    if clips > 1:
        videos = {average: Accuracy() for average in ("prob", "logit")}
        for batch, labels in test_batches(EvenClips(test, clips), settings, device):
            # As many clips at a time as there are videos in a batch: K times as many might not fit.
            parts = batch.flatten(0, 1).split(len(batch))
            scores = torch.cat([logits(part) for part in parts]).unflatten(0, (-1, clips))
            for average, accuracy in videos.items():
                accuracy.update(video_scores(scores, average), labels)
        for average, accuracy in videos.items():
            metrics |= {f"video_{name}_{average}": value for name, value in accuracy.result().items()}
    network.train(was_training)
    return metrics
