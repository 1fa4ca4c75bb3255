"""Binary SSD300 on VGG16 in the structure of BiDet (section 3.4)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from rebnn.detection.anchors import SSD_RATIOS, SSD_SIZE, ssd_priors
from rebnn.detection.multibox import decode_priors, match_priors, multibox_loss
from rebnn.method import rsign
from rebnn.models.resnet import shortcut

Conv = Callable[..., nn.Module]
SCORE, OVERLAP, KEPT = 0.01, 0.45, 200
"""least score, overlap at which a class's lower detection is dropped, and detections of an image (section 6)"""
# Output channels and stride of layers 2 to 17; layer 10 is the one whose shortcut averages odd maps too.
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (128, 1), (256, 2), (256, 1), (256, 1), (256, 1)),
    *((512, 2), (512, 1), (512, 1), (512, 1), (512, 2), (512, 1), (512, 1), (512, 1)),
)
ODD, FINE, COARSE = 10, 13, 24
"""the layer with ceil_mode, and the layers whose maps are the first two sources"""
DILATED = 19
"""the binary 3x3 convolution of dilation 6 in the place of VGG's first fully connected layer"""
EXTRAS = (
    *((256, 1, {}), (512, 3, {"stride": 2, "padding": 1}), (128, 1, {}), (256, 3, {"stride": 2, "padding": 1})),
    *((128, 1, {}), (256, 3, {}), (128, 1, {}), (256, 3, {})),
)
"""channels, kernel and options behind layer 24; every second map is a source"""


class Block(nn.Module):
    """Signs, binary 3x3 convolution, BN, shortcut, and no further activation; named as in BiDet's checkpoints."""

    def __init__(self, c_in: int, c_out: int, stride: int, conv: Conv, ceil_mode: bool = False):
        super().__init__()
        self.conv = conv(c_in, c_out, 3, stride=stride, padding=1)
        self.bn = nn.BatchNorm2d(c_out)
        self.downsample = shortcut(c_in, c_out, stride, ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] to [B, c_out, H / stride, W / stride]."""
        return self.bn(self.conv(rsign(x))) + self.downsample(x)


class L2Norm(nn.Module):
    """x / (‖x‖₂ over channels + 1e-10) times a learned scale of each channel, at first 20."""

    def __init__(self, channels: int, scale: float = 20.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(scale)))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.view(-1, 1, 1) * (x / (x.norm(dim=1, keepdim=True) + 1e-10))


class VGG(nn.Module):
    """Layers 0 to 24 under BiDet's numbers; forward returns the maps of layers 13 and 24."""

    def __init__(self, channels: Callable[[int], int], conv: Conv):
        super().__init__()
        width = channels(64)
        self.layers = nn.ModuleList([nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)])
        for number, (c_out, stride) in enumerate(BLOCKS, start=2):
            self.layers.append(Block(width, channels(c_out), stride, conv, ceil_mode=number == ODD))
            width = channels(c_out)
        wide = channels(1024)
        self.layers.append(nn.MaxPool2d(3, stride=1, padding=1))
        self.layers.append(conv(width, wide, 3, padding=6, dilation=6))
        self.layers.extend([nn.BatchNorm2d(wide), nn.ReLU()])
        self.layers.extend([nn.Conv2d(wide, wide, 1), nn.BatchNorm2d(wide), nn.ReLU()])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for number, layer in enumerate(self.layers):
            x = layer(rsign(x) if number == DILATED else x)
            if number == FINE:
                fine = x
        return fine, x


class SSD(nn.Module):
    """SSD300: maps of six scales, 8,732 priors, 4 box codes and classes + 1 logits a prior (class 0 = background).

    In training, forward returns the two losses of images and targets; otherwise detections. conv makes the binary
    layers, whose border sees -1 in BiDet. codes: box channels of a prior, 8 in BiDet (mean and variance), else 4.
    """

    def __init__(self, classes: int, conv: Conv, width: float = 1.0, priors: str = "voc", codes: int = 4):
        super().__init__()
        channels = lambda c: max(1, round(c * width))
        self.classes, self.codes, self.priors_of = classes, codes, priors
        self.vgg = VGG(channels, conv)
        self.L2Norm = L2Norm(channels(512))
        self.extras, self.extra_bns = nn.ModuleList(), nn.ModuleList()
        c_in, sources = channels(1024), [channels(512), channels(1024)]
        for number, (c_out, kernel, options) in enumerate(EXTRAS):
            self.extras.append(conv(c_in, channels(c_out), kernel, **options))
            self.extra_bns.append(nn.BatchNorm2d(channels(c_out)))
            c_in = channels(c_out)
            sources += [c_in] * (number % 2)
        boxes = [2 + 2 * len(ratios) for ratios in SSD_RATIOS]
        self.loc = nn.ModuleList(nn.Conv2d(c, n * codes, 3, padding=1) for c, n in zip(sources, boxes))
        self.conf = nn.ModuleList(nn.Conv2d(c, n * (classes + 1), 3, padding=1) for c, n in zip(sources, boxes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def draw(self, images: Sequence[tuple[int, int]]) -> None:
        """Nothing here is drawn; see FasterRCNN."""

    def maps(self, x: Tensor) -> list[Tensor]:
        """The six sources of images [B, 3, 300, 300]."""
        fine, x = self.vgg(x)
        sources = [self.L2Norm(fine), x]
        for number, (conv, bn) in enumerate(zip(self.extras, self.extra_bns)):
            x = bn(conv(rsign(x)))
            sources += [x] * (number % 2)
        return sources

    def dense(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [B, 8732, 4] and logits [B, 8732, classes + 1] of images [B, 3, 300, 300]."""
        sources = self.maps(x)
        flat = lambda heads: torch.cat(
            [head(source).permute(0, 2, 3, 1).flatten(1) for head, source in zip(heads, sources)], 1
        )
        codes = flat(self.loc).view(len(x), -1, self.codes)[..., -4:]
        return codes.float(), flat(self.conf).view(len(x), -1, self.classes + 1).float()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None):
        """Images [3, 300, 300], targets {boxes in pixels [G, 4], labels [G]}: losses, or detections of each image."""
        codes, logits = self.dense(torch.stack(images))
        priors = ssd_priors(self.priors_of).to(codes)
        if self.training:
            matched = [match_priors(priors, target["boxes"] / SSD_SIZE, target["labels"]) for target in targets]
            loss_box, loss_class = multibox_loss(codes, logits, *map(torch.stack, zip(*matched)))
            return {"loss_box": loss_box, "loss_class": loss_class}
        boxes = decode_priors(priors, codes).clamp(0, 1) * SSD_SIZE
        return [self.detections(box, score) for box, score in zip(boxes, logits.softmax(-1)[..., 1:])]

    def detections(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """The best boxes of an image after suppression by class: boxes [8732, 4], scores [8732, classes]."""
        prior, label = (scores >= SCORE).nonzero(as_tuple=True)
        score, box = scores[prior, label], boxes[prior]
        kept = batched_nms(box, score, label, OVERLAP)[:KEPT]
        return {"boxes": box[kept], "labels": label[kept], "scores": score[kept]}
