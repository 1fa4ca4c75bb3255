"""The images of both domains, on disk as the field has them or cut from photographs.

`python data.py --root DIR` says which data sets are there, what is missing and where it comes from.
"""

from common import run
from common.gan import data, sources
from common.gan.networks import require_fit

from crd.config import Config

__all__ = ["load", "main"]


def load(config: Config) -> tuple[data.TwoDomains, data.TwoDomains]:
    """Training and test set of a config. Errors: InputError (missing, unfit or damaged data)."""
    require_fit(config.model, config.data, config.networks)
    return data.load(config.data, config.seed)


def main(argv: list[str]) -> None:
    """Print what lies below --root."""
    sources.report(argv, __doc__)


if __name__ == "__main__":
    run.entry(main)
