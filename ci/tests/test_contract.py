"""Every rule of the contract, shown to fire by one seeded fault in a project that otherwise keeps it."""

import pytest

from ci import PROJECTS, contract, readme

FILES = {
    "__init__.py": "",
    "requirements.txt": "-c ../constraints.txt\n",
    "cfg.yaml": "width: 4\n",
    "configs/r20.yaml": (
        "# Table 1, row R56 to R20; one GPU, 3 hours\n# expected 70.75 top-1\n"
        "# python train.py --config configs/r20.yaml\nwidth: 8\n"
    ),
    "config.py": '''
from dataclasses import dataclass


@dataclass(frozen=True)
class Optim:
    rate: float = 0.1
    """learning rate"""


@dataclass(frozen=True)
class Config:
    seed: int = 0
    """where it starts; the one who reads it is common's Run"""
    width: int = 1
    """channels"""
    optim: Optim = Optim()
    """the optimiser"""
''',
    "train.py": """
from torch import nn
from kcd.config import Config
from kcd.method import loss


def build(config):
    return nn.Linear(config.width, config.width, bias=config.optim.rate > 0)
""",
    "eval.py": "import json\n",
    "method.py": "import math\nimport torch\nfrom torch.nn import functional\n\n\ndef loss(x):\n    return x\n",
    "models.py": "from kcd.method import loss\n",
    "data.py": "",
    "reproduce.yaml": """
config: cfg.yaml
checkpoint: student/last.pt
arms: {a: {width: 2}, b: {}}
quantities: {top1: {from: top1, higher_is_better: true}}
comparisons: [{a: a, b: b, quantity: top1, kind: direction, claim: Wider is better.}]
paper: {claim: Wider is better., source: a paper}
""",
    "README.md": """# KCD
```sh
cd kcd && pip install -r requirements.txt
python train.py --config cfg.yaml --optim.rate 0.1   # a minute
OMP_NUM_THREADS=2 torchrun --nproc_per_node=8 train.py \\
    --config configs/r20.yaml
python eval.py --checkpoint runs/NAME/student/last.pt
make test-kcd
```
```console
$ python -m kcd.train --config=$DATA/own.yaml
python prints-this.py
```
```python
python not_a_command.py
```
""",
    **{f"tests/test_{name}.py": "" for name in ("method", "models", "data", "train", "oracles")},
}
MAKEFILE = """
NAMES = kcd lts
.PHONY: setup
setup:
\techo hello
$(addprefix test-,$(NAMES)):
\techo $@
smoke-%:
\techo $@
"""


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "kcd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "run.py").write_text("def start(config):\n    return config.seed\n")
    return tmp_path


def faults(root):
    return [str(fault) for found in contract.check(root).values() for fault in found or []]


def test_a_project_that_keeps_the_contract_has_no_fault(root, capsys):
    assert contract.main(root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*PROJECTS, "common", "ci"]
    assert lines[PROJECTS.index("kcd")].split() == ["kcd", "ok"]
    assert lines[PROJECTS.index("lts")].endswith("not there yet")


def test_faults_are_printed_with_file_and_line(root, capsys):
    (root / "kcd" / "data.py").write_text("\nimport lts\n")
    assert contract.main(root) == 1
    out = capsys.readouterr().out
    assert "1 faults" in out
    assert "kcd/data.py:2: imports lts: projects never import one another" in out


REMOVED = [name for name in FILES if name != "train.py"]


@pytest.mark.parametrize("name", REMOVED)
def test_a_missing_file(root, name):
    (root / "kcd" / name).unlink()
    if name == "configs/r20.yaml":
        (root / "kcd" / "configs").rmdir()
    missing = f"kcd/{name.split('/')[0] if name.startswith('configs') else name}: is missing"
    assert any(fault.startswith(missing) for fault in faults(root))


def test_folders_may_stand_for_method_and_models(root):
    for name in ("method", "models"):
        (root / "kcd" / name).mkdir()
        (root / "kcd" / f"{name}.py").rename(root / "kcd" / name / "__init__.py")
    (root / "kcd" / "method" / "losses.py").write_text("from kcd.method import loss\nfrom . import loss as same\n")
    assert faults(root) == []


RIGHT_HEADER = FILES["configs/r20.yaml"]
GLUE = '''
from dataclasses import dataclass
from torch import nn


@dataclass(frozen=True)
class Config:
    words: int = 3
    """words"""


def build(config):
    return nn.Embedding(config.words, 2)
'''
HOME = "/".join(["", "home", "me", "cifar"])


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("cfg.yaml", "width", "widht", "kcd/cfg.yaml:1: unknown key widht, did you mean width?"),
        ("configs/r20.yaml", "width: 8", "width: wide", "kcd/configs/r20.yaml:4: width:"),
        ("cfg.yaml", "width: 4", "width: -1", "kcd/cfg.yaml: RuntimeError"),
        ("config.py", "class Config", "class Settings", "kcd/train.py: Config and build cannot be imported"),
        (
            "configs/r20.yaml",
            "Table 1, row",
            "From",
            "kcd/configs/r20.yaml:1: the comment that begins the file does not name the table row",
        ),
        ("configs/r20.yaml", "one GPU", "one night", "does not name the hardware"),
        ("configs/r20.yaml", "expected 70.75", "expected much", "does not name the expected number"),
        ("configs/r20.yaml", "configs/r20.yaml", "configs/r32.yaml", "does not name its own command"),
        ("configs/r20.yaml", RIGHT_HEADER, "width: 8\n" + RIGHT_HEADER[:-9], "does not name the hardware"),
        (
            "train.py",
            "bias=config.optim.rate > 0",
            "bias=bool(config.optim)",
            "kcd/config.py:7: Optim.rate is read nowhere",
        ),
        ("config.py", "    width", "    depth: int = 1\n    width", "kcd/config.py:15: Config.depth is read nowhere"),
        (
            "config.py",
            "    width",
            "    depth: int = 1\n    def f(self):\n        return self.depth\n    width",
            "Config.depth is read nowhere",
        ),
        ("data.py", "", "def f():\n    from rebnn.models import net\n", "kcd/data.py:2: imports rebnn.models"),
        ("tests/test_data.py", "", "import common\nimport crd.data\n", "kcd/tests/test_data.py:2: imports crd.data"),
        ("method.py", "import math", "import numpy as np", "kcd/method.py:1: imports numpy"),
        ("method.py", "import math", "from kcd import models", "kcd/method.py:1: imports kcd"),
        ("method.py", "import math", "from .models import x", "kcd/method.py:1: imports kcd.models"),
        ("method.py", "import math", "from common import shadow", "kcd/method.py:1: imports common"),
        (
            "reproduce.yaml",
            "quantity: top1",
            "quantity: top",
            "kcd/reproduce.yaml:6: comparisons.0.quantity: top is not",
        ),
        ("reproduce.yaml", "{width: 2}", "{widht: 2}", "kcd/reproduce.yaml: arms.a: --widht is not an option"),
        ("README.md", "cd kcd", "cd kdc", "kcd/README.md:3: cd kdc: there is no such folder"),
        (
            "README.md",
            "train.py --config cfg",
            "main.py --config cfg",
            "kcd/README.md:4: main.py: there is no such script",
        ),
        ("README.md", "configs/r20.yaml", "configs/r32.yaml", "kcd/README.md:5: --config configs/r32.yaml"),
        ("README.md", "test-kcd", "test-dcd", "kcd/README.md:8: make test-dcd: the Makefile has no such target"),
        ("README.md", "-m kcd.train", "-m kcd.trian", "kcd/README.md:11: python -m kcd.trian: there is no such module"),
        ("data.py", "", f"ROOT = '{HOME}'\n", "kcd/data.py:1: names a path of one machine: /" + "home"),
        ("README.md", "# KCD", f"Data lies in {HOME}.", "kcd/README.md:1: names a path of one machine"),
        ("eval.py", "import json", "import json (", "kcd/eval.py:1: is not valid Python"),
    ],
)
def test_a_seeded_fault_is_found(root, name, old, new, expected):
    path = root / "kcd" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    found = faults(root)
    assert any(expected in fault for fault in found), found


def test_results_that_were_edited(root):
    (root / "kcd" / "results.json").write_text('{"schema": 1, "projects": {}}')
    assert any("kcd/results.json: must hold kcd alone" in fault for fault in faults(root))


@pytest.mark.parametrize(("size", "count"), [(500_000, 0), (500_001, 1)])
def test_large_oracles(root, size, count):
    (root / "kcd" / "tests" / "oracles").mkdir()
    (root / "kcd" / "tests" / "oracles" / "losses.npz").write_bytes(bytes(size))
    assert len(faults(root)) == count


def test_common_knows_no_project(root):
    (root / "common" / "gan.py").write_text("from dcd import models\n")
    assert faults(root) == ["common/gan.py:1: imports dcd: projects never import one another"]


@pytest.mark.parametrize(("name", "refused"), [("labnet", [2]), ("hqss", [])])
def test_shadow_projects_may_use_the_shared_colour_functions_and_hqss_the_gan_objectives(root, name, refused):
    (root / name).mkdir()
    (root / name / "method.py").write_text("from common import shadow\nfrom common.gan import objectives\n")
    found = contract.method_imports(contract.Project(root, name))
    assert [fault.line for fault in found] == refused


@pytest.mark.parametrize("target", ["setup", "test-lts", "smoke-kcd", "<target>"])
def test_make_targets_are_those_that_make_knows(root, target):
    assert readme.is_target(target, root)


def test_generated_folders_are_not_read(root):
    for folder in ("runs", "data", "__pycache__"):
        (root / "kcd" / folder).mkdir()
        (root / "kcd" / folder / "env.json").write_text(f'"{HOME}"')
    assert faults(root) == []


def test_a_family_of_tasks_has_entry_points_and_a_plan_of_its_own(root):
    folder = root / "kcd"
    (folder / "train_glue.py").write_text(GLUE)
    header = FILES["configs/r20.yaml"].rpartition("width")[0]
    config = header.replace("train.py", "train_glue.py").replace("r20", "glue") + "words: 5\n"
    (folder / "configs" / "glue.yaml").write_text(config)
    plan = FILES["reproduce.yaml"].replace("cfg.yaml", "configs/glue.yaml").replace("width", "words")
    (folder / "reproduce_glue.yaml").write_text(plan)
    assert faults(root) == []
    (folder / "configs" / "glue.yaml").write_text(config.replace("words: 5", "words: -5"))
    (folder / "results_glue.json").write_text('{"schema": 1, "projects": {}}')
    (folder / "reproduce_glue.yaml").write_text(plan.replace("words", "width"))
    found = faults(root)
    assert len(found) == 3, found
    for path, message in (("configs/glue", "negative"), ("reproduce_glue", "width"), ("results_glue", "kcd-glue")):
        assert any(f"kcd/{path}" in fault and message in fault for fault in found), (path, found)
