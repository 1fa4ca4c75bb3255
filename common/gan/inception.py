"""The Inception network of the Fréchet Inception distance (FID), on torchvision's blocks."""

from os import PathLike

from common.errors import InputError
from common.weights import fit_weights, read_weights

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import inception

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"


def _average_pool(x: Tensor) -> Tensor:
    """3x3 with stride 1, padding left out of the mean, as in the TensorFlow original."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(inception.InceptionA):
    """Mixed_5b to Mixed_5d."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_average_pool(x)),
        ]


class BlockC(inception.InceptionC):
    """Mixed_6b to Mixed_6e."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_average_pool(x)),
        ]


class BlockE(inception.InceptionE):
    """Mixed_7b, and with max_pool Mixed_7c, whose pooling branch takes the maximum."""

    def __init__(self, channels: int, max_pool: bool):
        super().__init__(channels)
        self.max_pool = max_pool

    def _forward(self, x: Tensor) -> list[Tensor]:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else _average_pool(x)
        return [
            self.branch1x1(x),
            torch.cat([self.branch3x3_2a(single), self.branch3x3_2b(single)], 1),
            torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1),
            self.branch_pool(pooled),
        ]


class FIDInception(inception.Inception3):
    """Images [B, 3, H, W] in [0, 1] -> features [B, 2048].

    Resized to 299 bilinearly (no antialiasing) and brought to [-1, 1]; 1008 classes that are never used.
    """

    def __init__(self):
        super().__init__(num_classes=1008, aux_logits=False, init_weights=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            setattr(self, f"Mixed_{name}", BlockC(768, width))
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, max_pool=False), BlockE(2048, max_pool=True)
        self.eval().requires_grad_(False)
        self.architecture = "FID's Inception"

    def stages(self, images: Tensor) -> list[Tensor]:
        """After the first pool, after the second, Mixed_6e's map and the 2048 features."""
        x = F.interpolate(images, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
        first = self.maxpool1(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        second = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(first)))
        middle = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(second))))
        middle = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(middle))))
        last = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(middle)))
        return [first, second, middle, last.mean((2, 3))]

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)[-1]


def fid_inception(path: str | PathLike | None = None) -> FIDInception:
    """With the weights of the released file at path or, without one, downloaded.

    Errors: CheckpointError for a file that does not fit, InputError where the download fails.
    """
    if path:
        given = read_weights(path)
    else:
        try:
            given = torch.hub.load_state_dict_from_url(URL, progress=False, map_location="cpu", check_hash=True)
        except Exception as error:  # whatever a network, a proxy or a disk can raise
            raise InputError(f"FID's weights cannot be fetched ({error}); download {URL} and give its path") from error
    network = FIDInception()
    fit_weights(network, given, path or URL)
    return network
