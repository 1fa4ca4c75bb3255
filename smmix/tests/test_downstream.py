"""What the weights are for: a trained backbone, written as timm weights, in a detector of torchvision."""

import common  # noqa: F401

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from smmix.adapters import adapt
from smmix.method import SMMix, pool_regions
from smmix.models import build
from smmix.models.weights import write_timm

SIZE = 64


class Backbone(nn.Module):
    """The last feature map of a timm network, as torchvision's detectors want it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.out_channels = network, network.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.network.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[-1]


def train_one_step(network: nn.Module) -> None:
    """A step of SMMix, so that the weights are not those of a seed."""
    images, labels = torch.randn(4, 3, SIZE, SIZE), torch.arange(4)
    adapter, mixer = adapt(network.train()), SMMix(4, switch_prob=1.0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    mixed = mixer(images, labels, adapter.look)
    logits, tokens = adapter.run(mixed.images)
    regions = network.token_head(pool_regions(tokens, mixed.source)).chunk(2)
    sum(mixer.losses(mixed, logits, *regions).values()).backward()
    optimiser.step()


def test_a_trained_backbone_serves_a_detector(tmp_path):
    torch.manual_seed(0)
    network = build("deit_tiny_patch16_224", 4, image_size=SIZE)
    train_one_step(network)
    weights = write_timm(network, tmp_path / "backbone.safetensors")
    loaded = timm.create_model("deit_tiny_patch16_224", num_classes=4, img_size=SIZE, checkpoint_path=str(weights))
    detector = FasterRCNN(
        Backbone(loaded),
        num_classes=3,
        min_size=SIZE,
        max_size=SIZE,
        fixed_size=(SIZE, SIZE),
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=2),
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=20,
        rpn_post_nms_top_n_test=20,
        rpn_batch_size_per_image=16,
        box_batch_size_per_image=8,
    )
    image = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = network.eval().forward_features(image)[:, 1:].transpose(1, 2).reshape(1, 192, 4, 4)
        torch.testing.assert_close(detector.eval().backbone(image), expected)

    images = [torch.rand(3, SIZE, SIZE) for _ in range(2)]
    boxes = torch.tensor([[4.0, 8.0, 40.0, 50.0], [20.0, 20.0, 60.0, 60.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
    optimiser = torch.optim.AdamW(detector.parameters(), lr=1e-4)
    before = {key: value.clone() for key, value in detector.backbone.named_parameters()}
    losses = detector.train()(images, targets)
    assert losses.keys() == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    optimiser.step()
    still = [key for key, value in detector.backbone.named_parameters() if torch.equal(value, before[key])]
    assert still == ["network.head.weight", "network.head.bias"]  # the classifier is not part of the backbone
    found = detector.eval()(images)
    assert len(found) == 2 and all(one["boxes"].shape[1] == 4 for one in found)
