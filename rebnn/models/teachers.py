"""Real networks that teach: torchvision's ResNets (section 2.9), one for 32x32 images, and one for the digits."""

from collections.abc import Sequence

import torchvision
from torch import nn


def imagenet_teacher(depth: int, classes: int) -> nn.Module:
    """torchvision's ResNet-18 or -34, so that its published weights fit; weights are fresh."""
    return getattr(torchvision.models, f"resnet{depth}")(num_classes=classes)


def cifar_teacher(depth: int, classes: int) -> nn.Module:
    """The same for 32x32 images: a 3x3 stem at full resolution and no max-pooling."""
    network = imagenet_teacher(depth, classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def convnet(channels: Sequence[int], classes: int) -> nn.Sequential:
    """3x3 convolutions with BN and ReLU, halving the map from the second on, then the mean and a linear layer."""
    layers = []
    for i, (c_in, c_out) in enumerate(zip((3, *channels), channels)):
        conv = nn.Conv2d(c_in, c_out, 3, stride=2 if i else 1, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))
