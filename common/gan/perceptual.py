"""Perceptual losses on features of VGG-16: Gram matrices (style) and the features themselves."""

from os import PathLike

from common.errors import InputError
from common.weights import fit_weights, read_weights

import torch
from torch import Tensor, nn

# The slices of torchvision's `features` that end in relu1_2, relu2_2, relu3_3 and relu4_3.
SLICES = {"1_2": (0, 4), "2_2": (4, 9), "3_3": (9, 16), "4_3": (16, 23)}
CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512)  # 0: max-pool


class VGGFeatures(nn.Module):
    """The four feature maps of images in [-1, 1], which are brought to [0, 1] and not normalised further.

    divide: all widths are divided by it, for tests. Frozen. Weights and maps lie in channels_last, the faster layout.
    """

    def __init__(self, divide: int = 1):
        super().__init__()
        layers, before = [], 3
        for channels in CHANNELS:
            if channels:
                layers += [nn.Conv2d(before, channels // divide, 3, padding=1), nn.ReLU(inplace=True)]
                before = channels // divide
            else:
                layers.append(nn.MaxPool2d(2))
        for name, (start, end) in SLICES.items():
            part = nn.Sequential()
            for place in range(start, end):
                part.add_module(str(place), layers[place])
            setattr(self, f"to_relu_{name}", part)
        self.requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        x, features = ((images + 1) / 2).contiguous(memory_format=torch.channels_last), []
        for name in SLICES:
            x = getattr(self, f"to_relu_{name}")(x)
            features.append(x)
        return features


def vgg16(path: str | PathLike | None = None) -> VGGFeatures:
    """VGG-16's features with ImageNet weights, of torchvision's file at path or, without one, downloaded.

    Errors: CheckpointError for a file that does not fit, InputError where the download fails.
    """
    network = VGGFeatures()
    network.architecture = "VGG-16 to relu4_3"
    if path:
        given = read_weights(path)
    else:
        from torchvision.models import VGG16_Weights

        path = VGG16_Weights.IMAGENET1K_V1.url
        try:
            given = torch.hub.load_state_dict_from_url(path, progress=False, map_location="cpu", check_hash=True)
        except Exception as error:  # whatever a network, a proxy or a disk can raise
            raise InputError(
                f"VGG-16's weights cannot be fetched ({error}); download {path} and give its path"
            ) from error
    wanted = {key.split(".", 1)[1]: key for key in network.state_dict()}
    found = {key.removeprefix("features."): value for key, value in given.items()}
    fit_weights(network, {wanted[key]: value for key, value in found.items() if key in wanted}, path)
    return network


def random_vgg(divide: int = 8, seed: int = 0) -> VGGFeatures:
    """VGG-16 of a fraction of its width with fixed random weights N(0, 2 / fan-in), where there are no trained ones."""
    network, generator = VGGFeatures(divide), torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        else:
            value.zero_()
    return network


class SelfProduct(torch.autograd.Function):
    """F Fᵀ of [B, C, N] with a backward of one product, (G + Gᵀ) F, where autograd would take two."""

    @staticmethod
    def forward(ctx, flat: Tensor) -> Tensor:
        ctx.save_for_backward(flat)
        return flat @ flat.mT

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (flat,) = ctx.saved_tensors
        # Transposed, the product lies in memory as the features do: their layout is channels_last.
        return (flat.mT @ (grad + grad.mT)).mT


def gram(features: Tensor) -> Tensor:
    """F Fᵀ / (C·H·W) of each image: [B, C, H, W] -> [B, C, C]."""
    flat = features.flatten(2)
    return SelfProduct.apply(flat) / flat[0].numel()


def style_loss(features: list[Tensor], target: list[Tensor]) -> Tensor:
    """Σ over layers of the mean absolute difference of Gram matrices."""
    return torch.stack([(gram(f) - gram(t)).abs().mean() for f, t in zip(features, target)]).sum()


def feature_loss(features: list[Tensor], target: list[Tensor]) -> Tensor:
    """The mean absolute difference of relu2_2."""
    return (features[1] - target[1]).abs().mean()
