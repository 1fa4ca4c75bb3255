"""What two or more projects share; importing it makes torchvision importable beside a CPU-only torch."""

from common import torchvision_ops

torchvision_ops.install()
