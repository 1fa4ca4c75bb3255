"""Binary Faster-RCNN on torchvision's framework, where its form is IDa-Det's (section 3.3).

What differs from torchvision: anchors without a half-cell shift, no 1/9 in the L1 losses, matching with a least
overlap, the code's clamp, the aligned RoIAlign, background as the last class, draws that depend on nothing but
(seed, epoch, image), and batches whose images were resized before.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms, roi_align

from rebnn.detection.anchors import Anchors
from rebnn.detection.backbone import Neck, Pyramid, Trunk, body, scaled
from rebnn.detection.boxes import Coder, clip
from rebnn.detection.matching import PROPOSALS, REGIONS, Matcher, Sampler
from rebnn.method import rsign

Conv = Callable[..., nn.Module]
STRIDES, C4_STRIDE, C4_SCALES = (4, 8, 16, 32, 64), 16, (8, 16, 32)
RATIOS = 3
POOLED = 7
"""cells of a region on a side"""
FINEST = 56
"""side in pixels of a region of the finest level; with each doubling it belongs to the next"""
DIVISOR = 32
"""images are padded to multiples of it"""


class Padding(nn.Module):
    """Images of different sizes in one batch, filled up with zeros below and to the right; nothing is resized."""

    def forward(self, images: list[Tensor], targets=None) -> tuple[ImageList, list | None]:
        sizes = [tuple(image.shape[-2:]) for image in images]
        height, width = (-(-max(side) // DIVISOR) * DIVISOR for side in zip(*sizes))
        padded = [F.pad(image, (0, width - w, 0, height - h)) for image, (h, w) in zip(images, sizes)]
        return ImageList(torch.stack(padded), sizes), targets

    def postprocess(self, detections, image_sizes, original_sizes):
        return detections


class RPNHead(nn.Module):
    """A binary 3x3 convolution with PReLU, then real 1x1 ones: objectness and box codes of each anchor."""

    def __init__(self, channels: int, anchors: int, conv: Conv):
        super().__init__()
        self.rpn_conv = conv(channels, channels, 3, padding=1, bias=True)
        self.prelu = nn.PReLU(channels)
        self.rpn_cls, self.rpn_reg = nn.Conv2d(channels, anchors, 1), nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (self.rpn_conv, self.rpn_cls, self.rpn_reg):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Logits [B, A, H, W] and codes [B, 4·A, H, W] of each level."""
        hidden = [self.prelu(self.rpn_conv(rsign(x))) for x in maps]
        return [self.rpn_cls(x).float() for x in hidden], [self.rpn_reg(x).float() for x in hidden]


class Proposals(RegionProposalNetwork):
    """torchvision's region proposal network with IDa-Det's matching and losses."""

    def __init__(self, anchors: Anchors, head: RPNHead, seed: int, weight: float, kept: int):
        before, after = {"training": 2 * kept, "testing": kept}, {"training": kept, "testing": kept}
        super().__init__(anchors, head, 0.7, 0.3, 256, 0.5, before, after, 0.7)
        self.box_coder = Coder((1.0, 1.0, 1.0, 1.0))
        self.proposal_matcher = Matcher(0.7, 0.3, least=0.3)
        self.fg_bg_sampler = Sampler(256, 0.5, seed, PROPOSALS)
        self.weight = weight

    def compute_loss(self, objectness, pred_bbox_deltas, labels, regression_targets) -> tuple[Tensor, Tensor]:
        """Sigmoid cross entropy, and L1 on the codes of positives, over all sampled anchors."""
        positive, negative = (torch.cat(chosen) for chosen in self.fg_bg_sampler(labels))
        sampled, labels = positive | negative, torch.cat(labels)
        count = sampled.sum().clamp(min=1)
        entropy = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], labels[sampled], reduction="sum")
        wanted = torch.cat(regression_targets)[positive]
        distance = F.l1_loss(pred_bbox_deltas[positive], wanted, reduction="sum")
        return self.weight * entropy / count, self.weight * distance / count


class RegionAlign(nn.Module):
    """RoIAlign of each region on the level of its size, 7x7, with the half-pixel shift."""

    def __init__(self, strides: Sequence[int]):
        super().__init__()
        self.strides = tuple(strides)

    def level(self, boxes: Tensor) -> Tensor:
        """clamp(⌊log2(√(w·h) / 56 + 1e-6)⌋, 0, levels - 1), int64 [N]."""
        side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
        return (side / FINEST + 1e-6).log2().floor().clamp(0, len(self.strides) - 1).long()

    def forward(self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes) -> Tensor:
        """Proposals [N_i, 4] of each image to [ΣN_i, C, 7, 7]."""
        image = torch.cat([p.new_full((len(p), 1), i) for i, p in enumerate(proposals)])
        regions = torch.cat([image, torch.cat(proposals)], 1)
        level = self.level(regions[:, 1:])
        order = level.argsort(stable=True)
        counts = torch.bincount(level, minlength=len(self.strides)).tolist()
        parts = zip(features.values(), self.strides, regions[order].split(counts))
        pooled = torch.cat([roi_align(one, own, POOLED, 1 / stride, 0, True) for one, stride, own in parts])
        return pooled[order.argsort()]


class Predictor(nn.Module):
    """Class logits with background last, and box codes for each class, or one code for all."""

    def __init__(self, channels: int, classes: int, agnostic: bool = False):
        super().__init__()
        self.fc_cls = nn.Linear(channels, classes + 1)
        self.fc_reg = nn.Linear(channels, 4 if agnostic else 4 * classes)
        nn.init.normal_(self.fc_cls.weight, std=0.01)
        nn.init.normal_(self.fc_reg.weight, std=0.001)
        for layer in (self.fc_cls, self.fc_reg):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc_cls(x).float(), self.fc_reg(x).float()


class Regions(RoIHeads):
    """torchvision's heads with background as the last class and L1 losses."""

    def __init__(self, pool, head, predictor, classes: int, seed: int, weight: float, sampled: int):
        super().__init__(pool, head, predictor, 0.5, 0.5, sampled, 0.25, None, 0.05, 0.5, 100)
        self.box_coder = Coder((0.1, 0.1, 0.2, 0.2))
        self.proposal_matcher = Matcher(0.5, 0.5)
        self.fg_bg_sampler = Sampler(sampled, 0.25, seed, REGIONS)
        self.classes, self.weight = classes, weight

    def assign_targets_to_proposals(self, proposals, gt_boxes, gt_labels) -> tuple[list[Tensor], list[Tensor]]:
        """torchvision's, of labels from 1, with its background 0 moved behind the last class."""
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, [one + 1 for one in gt_labels])
        return matched, [torch.where(one == 0, self.classes, one - 1) for one in labels]

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        return super().subsample([(one < self.classes).long() for one in labels])

    def forward(self, features, proposals, image_shapes, targets=None) -> tuple[list[dict], dict]:
        """Losses in training, otherwise detections {boxes, labels, scores} of each image; as torchvision's."""
        if not self.training:
            logits, codes = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
            return self.detections(logits, codes, proposals, image_shapes), {}
        proposals, _, labels, wanted = self.select_training_samples(proposals, targets)
        logits, codes = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        labels, wanted = torch.cat(labels), torch.cat(wanted)
        positive = (labels < self.classes).nonzero()[:, 0]
        codes = codes.view(len(labels), -1, 4)
        column = labels[positive] if codes.shape[1] > 1 else torch.zeros_like(positive)
        distance = F.l1_loss(codes[positive, column], wanted[positive], reduction="sum") / len(labels)
        return [], {
            "loss_classifier": self.weight * F.cross_entropy(logits, labels),
            "loss_box_reg": self.weight * distance,
        }

    def detections(self, logits: Tensor, codes: Tensor, proposals: list[Tensor], image_shapes) -> list[dict]:
        """The best boxes of each image after suppression by class."""
        counts = [len(one) for one in proposals]
        boxes = self.box_coder.decode(codes, proposals).expand(-1, self.classes, -1)
        scores = logits.softmax(-1)[:, : self.classes]
        found = []
        for box, score, shape in zip(boxes.split(counts), scores.split(counts), image_shapes):
            region, label = (score > self.score_thresh).nonzero(as_tuple=True)
            box, score = clip(box[region, label], shape), score[region, label]
            kept = batched_nms(box, score, label, self.nms_thresh)[: self.detections_per_img]
            found.append({"boxes": box[kept], "labels": label[kept], "scores": score[kept]})
        return found


class TopHead(nn.Sequential):
    """Stage 4 on each region, then the mean over its cells (section 3.3, C4)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean((2, 3))


class FasterRCNN(GeneralizedRCNN):
    """The detector: in training, losses of images [3, H, W] and targets {boxes, labels}; otherwise detections.

    frozen: parts of the body that stay as they are, 1 the stem, 2 layer1 too, …; norm_eval: BN keeps its running
    statistics in training. Both are called on every train().
    """

    def __init__(self, backbone: nn.Module, rpn: nn.Module, roi_heads: nn.Module, frozen: int, norm_eval: bool):
        super().__init__(backbone, rpn, roi_heads, Padding())
        network = backbone.body
        self.norm_eval = norm_eval
        stem = [network.conv1, network.bn1] if frozen else []
        self.kept = [*stem, *network.stages()[: max(0, frozen - 1)]]
        for part in self.kept:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "FasterRCNN":
        super().train(mode)
        for module in self.modules() if self.norm_eval else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for part in self.kept:
            part.eval()
        return self

    def draw(self, images: Sequence[tuple[int, int]]) -> None:
        """(number, pass) of the images of the next call, on which the choice of anchors and regions depends."""
        self.rpn.fg_bg_sampler.at(images)
        self.roi_heads.fg_bg_sampler.at(images)


def pyramid_detector(name: str, classes: int, conv: Conv, width: float, bias: bool, scale: float, **rest) -> FasterRCNN:
    """IDa-Det's form: ResNet, binary pyramid, binary head of the proposals, two real fully connected layers.

    conv: makes binary convolutions; bias: whether those of the body have one; scale: of the anchors.
    """
    channels, (out, hidden) = scaled((64, 128, 256, 512), width), scaled((256, 1024), width)
    backbone = Pyramid(body(name, width, _with(conv, bias=bias)), Neck(channels, out, conv), out)
    head = TwoMLPHead(out * POOLED**2, hidden)
    return _assemble(
        backbone,
        Anchors(STRIDES, (scale,)),
        RPNHead(out, RATIOS, conv),
        *(RegionAlign(STRIDES[:4]), head, Predictor(hidden, classes)),
        classes=classes,
        **rest,
    )


def c4_detector(name: str, classes: int, conv: Conv, width: float, bias: bool, scale: float, **rest) -> FasterRCNN:
    """BiDet's form: one map of stride 16, stage 4 on each region, one box code for all classes."""
    channels = scaled((256, 512), width)
    network = body(name, width, _with(conv, bias=bias))
    top = TopHead(*network.layer4)
    scales = [scale * times / C4_SCALES[0] for times in C4_SCALES]
    return _assemble(
        Trunk(network, channels[0]),
        Anchors((C4_STRIDE,), scales),
        RPNHead(channels[0], RATIOS * len(scales), conv),
        *(RegionAlign((C4_STRIDE,)), top, Predictor(channels[1], classes, agnostic=True)),
        classes=classes,
        **rest,
    )


def _assemble(backbone, anchors, rpn_head, pool, head, predictor, *, classes, seed, weight, kept, sampled, **rest):
    rpn = Proposals(anchors, rpn_head, seed, weight, kept)
    heads = Regions(pool, head, predictor, classes, seed, weight, sampled)
    return FasterRCNN(backbone, rpn, heads, **rest)


def _with(conv: Conv, **options) -> Conv:
    return lambda *words, **more: conv(*words, **more, **options)
