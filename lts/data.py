"""The data sets of the paper with its own statistics and crops (section 5).

`python data.py --root DIR` says which data sets are there, what is missing and where it comes from.
"""

from common import labelled, run
from common.imagesets import FolderSet

from lts.config import Config

STATISTICS = {
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "cifar100": ((129.3 / 255, 124.1 / 255, 112.4 / 255), (68.2 / 255, 65.4 / 255, 70.4 / 255)),
}
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}


def cropped_from(smallest: float) -> type[FolderSet]:
    """Class folders whose random crops cover at least this share of an image."""

    class Cropped(FolderSet):
        @staticmethod
        def _random_crop(image, draws):
            draws = draws.copy()
            # FolderSet draws areas from 0.08 on; the same uniform numbers, moved into [smallest, 1].
            draws[:, 0] = (smallest - 0.08 + (1 - smallest) * draws[:, 0]) / 0.92
            return FolderSet._random_crop(image, draws)

    return Cropped


def load(config: Config) -> tuple:
    """Training and test set of a config. Errors: InputError (missing, unfit or damaged data)."""
    train, test = labelled.load(config.data, config.seed, folder=cropped_from(config.smallest_crop))
    if config.data.name in STATISTICS:
        train.statistics = test.statistics = STATISTICS[config.data.name]
    return train, test


def main(argv: list[str]) -> None:
    """Print what lies below --root."""
    labelled.report_sources(argv, __doc__)


if __name__ == "__main__":
    run.entry(main)
