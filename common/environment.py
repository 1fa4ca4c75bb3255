"""What a result depends on beside its config."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from common import config, distributed

import numpy as np
import torch


def environment(conf, data: dict) -> dict:
    """Versions, machine, commit, command, config and data, for env.json."""
    root = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False)
        except OSError:  # no git: an installed wheel has no commit either
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "threads": torch.get_num_threads(),
        "world": distributed.world(),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "config_sha256": config.digest(conf),
        "data": data,
    }
