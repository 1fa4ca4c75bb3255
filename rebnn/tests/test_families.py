"""train.py takes the configs of every family; the other scripts name the one that a foreign file belongs to."""

from pathlib import Path

from common import checkpoint, config
from common.errors import InputError

import pytest

from rebnn import eval as evaluation
from rebnn import eval_detection, eval_glue, families, train, train_detection, train_glue
from rebnn.detection.config import Config as DetectionConfig

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    "name, family",
    [("imagenet_resnet18", ""), ("voc_ssd", "detection"), ("embedded_glue", "glue"), ("none_such", None)],
)
def test_a_config_tells_its_family(name, family):
    assert families.family_of_file(str(CONFIGS / f"{name}.yaml")) == family


@pytest.mark.parametrize("other", [train_detection, train_glue])
@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_train_hands_over_what_belongs_to_another_family(monkeypatch, other, form):
    name = {train_detection: "voc_fasterrcnn_r18", train_glue: "glue_sst2_bert"}[other]
    words = [*form.format(CONFIGS / f"{name}.yaml").split(), "--data.root", "somewhere"]
    monkeypatch.setattr(other, "main", lambda argv: argv)
    assert train.main(words) == words


def test_scripts_of_a_family_name_the_right_one():
    for script, name, right in (
        (train_detection, "glue_sst2_bert", "train_glue.py"),
        (train_glue, "cifar10_resnet18", "train.py"),
    ):
        with pytest.raises(InputError, match=rf"{name}.yaml: belongs to another family of tasks; python {right}"):
            script.main(["--config", str(CONFIGS / f"{name}.yaml")])


def test_a_checkpoint_is_evaluated_by_its_family(tmp_path):
    values = config.to_dict(config.load(DetectionConfig, CONFIGS / "voc_ssd.yaml"))
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"format": checkpoint.FORMAT, "project": "rebnn", "stage": "step2", "config": values})
    for script in (evaluation, eval_glue):
        with pytest.raises(InputError, match=r"last.pt: belongs to another family of tasks; python eval_detection.py"):
            script.main(["--checkpoint", str(path)])
    with pytest.raises(InputError, match=r"embedded_glue.yaml: belongs .* python eval_glue.py"):
        eval_detection.main(["--checkpoint", str(path), "--config", str(CONFIGS / "embedded_glue.yaml")])
