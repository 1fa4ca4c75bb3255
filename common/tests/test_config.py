"""Every fault of a config is an InputError that names file, line and key.

Nothing is ignored and nothing is executed.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from common import config
from common.config import Count, Fraction, NonNegative, Positive, Share
from common.errors import InputError

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st


@dataclass(frozen=True)
class Optim:
    """The optimiser."""

    learning_rate: Positive = 0.05
    """base learning rate"""
    decay: NonNegative = 5e-4
    """weight decay"""
    momentum: Fraction = 0.9
    """momentum of SGD"""
    milestones: list[int] = field(default_factory=lambda: [3, 5])
    """epochs after which the rate falls"""


@dataclass(frozen=True)
class Experiment:
    """An experiment with one group."""

    optim: Optim = field(default_factory=Optim)
    epochs: Count = 10
    """passes over the data"""
    keep: Share = 0.5
    """share of the data that stays"""
    flip: bool = True
    """mirror half of the images"""
    method: Literal["kd", "crd"] = "kd"
    """distillation loss"""
    teacher: str | None = None
    """weights of the teacher"""
    seed: int = 0
    """seed of everything random"""


STAGES = ("teacher", "student")


@pytest.fixture
def file(tmp_path):
    def write(text, name="cfg.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        config.load(Experiment, path)
    return str(caught.value)


def test_a_file_states_only_what_differs(file):
    loaded = config.load(Experiment, file("epochs: 3\noptim:\n  milestones: [1, 2]\nteacher: null\n"))
    assert loaded == Experiment(Optim(milestones=[1, 2]), epochs=3)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            "epochs: 3\noptim:\n  learing_rate: 0.1\n",
            3,
            ["unknown key optim.learing_rate", "optim.learning_rate?"],
        ),
        ("epoch: 3\n", 1, ["unknown key epoch, did you mean epochs?"]),
        ("\n\nqqqqqqqqqqqqqqqq: 3\n", 3, ["unknown key qqqqqqqqqqqqqqqq"]),
        ("epochs: 3\nflip: true\nepochs: 4\n", 3, ["epochs was already given in line 1"]),
        ("optim:\n  decay: 0\n  decay: 1\n", 3, ["optim.decay was already given in line 2"]),
        ("epochs: ten\n", 1, ["epochs", "ten"]),
        ("flip: true\nepochs: 0\n", 2, ["epochs", "0"]),
        ("epochs: 2.5\n", 1, ["epochs", "2.5"]),
        ("optim:\n  learning_rate: -1\n", 2, ["optim.learning_rate", "-1"]),
        ("optim:\n  learning_rate: .nan\n", 2, ["optim.learning_rate", "nan"]),
        ("optim:\n  learning_rate: .inf\n", 2, ["optim.learning_rate", "inf"]),
        ("optim:\n  decay: .inf\n", 2, ["optim.decay", "inf"]),
        ("optim:\n  decay: nan\n", 2, ["optim.decay", "nan"]),
        ("optim:\n  momentum: 1.5\n", 2, ["optim.momentum", "1.5"]),
        ("keep: 0\n", 1, ["keep", "0"]),
        ("method: no\n", 1, ["method"]),
        ("method: kdd\n", 1, ["method", "kdd"]),
        ("flip: 3\n", 1, ["flip", "3"]),
        ("flip:\n", 1, ["flip needs a value"]),
        ("epochs: 3\nflip: null\n", 2, ["flip needs a value"]),
        ("epochs: 3\noptim:\n  learning_rate: ~\n", 3, ["optim.learning_rate needs a value"]),
        ("optim:\n  milestones: [1, null]\n", 2, ["optim.milestones", "None"]),
        ("optim:\n  milestones: 3\n", 2, ["optim.milestones", "3"]),
        ("optim:\n  milestones: [1, two]\n", 2, ["optim.milestones", "two"]),
        ("epochs: 3\n\tflip: true\n", 2, ["not valid YAML"]),
        ("epochs: [3\n", 2, ["not valid YAML"]),
        ("optim: 3\n", 1, ["optim is a group"]),
        ("flip: true\noptim:\n", 2, ["optim is a group"]),
        ("optim: [1, 2]\n", 1, ["optim is a group"]),
        ("epochs: {a: 1}\n", 1, ["unknown key epochs.a"]),
        ("config: other.yaml\n", 1, ["unknown key config"]),
        ("out: elsewhere\n", 1, ["unknown key out"]),
        ("epochs: !custom 3\n", 1, ["epochs", "!custom"]),
        ("<<: {epochs: 3}\n", 1, ["unknown key <<"]),
    ],
)
def test_a_fault_names_file_line_and_key(file, text, line, words):
    path = file(text)
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: ")
    for word in words:
        assert word in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found nothing"),
        ("# a remark\n", "found nothing"),
        ("- epochs: 3\n", "found sequence"),
        ("epochs\n", "found scalar"),
        (b"epochs: \xff\xfe\n", "not UTF-8"),
        ("epochs: 3\n---\nepochs: 4\n", "not valid YAML"),
        ("flip: \x00\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(file, text, words):
    path = file(text)
    message = refusal(path)
    assert message.startswith(str(path))
    assert words in message


def test_missing_file_folder_and_loop_of_links(tmp_path):
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    for path in (tmp_path / "missing.yaml", tmp_path, loop):
        assert str(path) in refusal(path)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1E2", 100.0), ("2", 2.0), ("5.e-1", 0.5)])
def test_exponents_are_numbers(file, text, value):
    rate = config.load(Experiment, file(f"optim:\n  learning_rate: {text}\n")).optim.learning_rate
    assert type(rate) is float
    assert rate == value


def test_no_is_a_truth_value_only_where_one_is_wanted(file):
    assert config.load(Experiment, file("flip: no\n")).flip is False
    assert config.load(Experiment, file("teacher: 'no'\n")).teacher == "no"


@pytest.mark.parametrize(
    "text",
    [
        "teacher: !!python/object/apply:{call} ['{canary}']\n",
        "!!python/object/apply:{call} ['{canary}']\n",
        "optim:\n  milestones: [!!python/object/apply:{call} ['{canary}']]\n",
        "!!python/object/apply:{call} ['{canary}']: 3\n",
        "optim: !!python/object/apply:{call} ['{canary}']\n",
    ],
)
def test_a_python_tag_is_never_executed(file, tmp_path, text):
    canary = tmp_path / "canary"
    text = text.format(call="os.mkdir", canary=canary)
    yaml.unsafe_load(text.replace("optim: ", "").replace(": 3", ""))
    assert canary.is_dir(), "the payload must be a working one"
    canary.rmdir()
    assert str(file(text)) in refusal(file(text))
    with pytest.raises(InputError):
        config.parse(Experiment, ["--config", str(file(text))], "", STAGES)
    assert not canary.exists()


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "epochs: {"])
def test_deep_nesting_is_refused(file, opening):
    path = file(opening * (2**20 // len(opening)))
    assert str(path) in refusal(path)


def parse(*argv):
    return config.parse(Experiment, list(argv), "about", STAGES)


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(file):
    path = file("epochs: 3\noptim:\n  learning_rate: 0.2\n  decay: 0\n", "digits.yaml")
    expected = Experiment(Optim(learning_rate=1e-3, decay=0.0), epochs=3)
    for argv in (
        ["--config", str(path), "--optim.learning_rate", "1e-3"],
        ["--optim.learning_rate", "1e-3", "--config", str(path)],
        [f"--config={path}", "--optim.learning_rate=1e-3"],
    ):
        made, command, name = parse(*argv)
        assert (made, command, name) == (expected, config.Command(), "digits")


def test_the_flags_of_a_call():
    made, command, name = parse("--out", "there", "--stage", "student", "--resume", "auto", "--resume_force", "true")
    assert (made, name) == (Experiment(), "default")
    assert command == config.Command("there", "student", "auto", True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--optim.learing_rate", "1"], ["--optim.learing_rate", "optim.learning_rate?"]),
        (["--epoch", "1"], ["--epoch is not an option", "epochs?"]),
        (["--epoch=1"], ["--epoch is not an option", "epochs?"]),
        (["--optim.lear", "1"], ["--optim.lear"]),
        (["--epochs", "ten"], ["--epochs", "ten"]),
        (["--epochs", "-1"], ["--epochs", "-1"]),
        (["--optim.learning_rate", "nan"], ["--optim.learning_rate", "nan"]),
        (["--epochs"], ["epochs"]),
        (["stray"], ["stray"]),
        (["--stage", "studnt"], ["--stage studnt", "teacher", "did you mean student?"]),
        (["--config"], ["config"]),
        (["--config", "a.yaml", "--config", "b.yaml"], ["2 times", "a.yaml, b.yaml"]),
        (["--config=a.yaml", "--config", "b.yaml"], ["2 times", "a.yaml", "b.yaml"]),
    ],
)
def test_a_wrong_option_is_named(argv, words):
    with pytest.raises(InputError) as caught:
        parse(*argv)
    for word in words:
        assert word in str(caught.value)


def test_the_place_of_a_fault_is_the_option_when_both_gave_the_key(file):
    path = file("epochs: 3\n")
    with pytest.raises(InputError, match="--epochs"):
        parse("--config", str(path), "--epochs", "ten")


@dataclass(frozen=True)
class Widths:
    """A config with a tuple."""

    widths: tuple[float, ...] = (0.75, 0.5)
    """falling widths"""


def test_a_stored_or_overridden_config_has_its_tuples_and_can_be_hashed():
    again = config.override(config.from_dict(Widths, config.to_dict(Widths())), [])
    assert again == Widths() and hash(again) == hash(Widths())


def test_override_keeps_the_rest():
    base = Experiment(Optim(learning_rate=0.3, milestones=[7]), epochs=4, teacher="w.pt")
    changed = config.override(base, ["--optim.decay", "0.1", "--flip", "false"])
    assert changed == dataclasses.replace(base, optim=dataclasses.replace(base.optim, decay=0.1), flip=False)
    with pytest.raises(InputError, match="flipp"):
        config.override(base, ["--flipp", "false"])


def numbers(made):
    """The numbers of a config, which go into checkpoints and must be plain ones there."""
    values = [getattr(made, field.name) for field in dataclasses.fields(made)]
    return [
        v for value in values for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)
    ]


def is_text(value: str) -> bool:
    """jsonargparse reads a string again where None is allowed too, so `null` cannot be the name of a file."""
    try:
        return yaml.safe_load(value) is not None
    except yaml.YAMLError:
        return True


positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
experiments = st.builds(
    Experiment,
    optim=st.builds(
        Optim,
        learning_rate=positive,
        decay=st.floats(min_value=0, allow_infinity=False),
        momentum=st.floats(0, 1),
        milestones=st.lists(st.integers(-(2**40), 2**40), max_size=4),
    ),
    epochs=st.integers(1, 2**40),
    keep=st.floats(0, 1, exclude_min=True),
    flip=st.booleans(),
    method=st.sampled_from(["kd", "crd"]),
    teacher=st.none() | st.text(st.characters(codec="utf-8"), max_size=12).filter(is_text),
    seed=st.integers(-(2**70), 2**70),
)


@given(made=experiments)
@example(made=Experiment(teacher="1e-3"))
@example(made=Experiment(teacher="a: b # c"))
@settings(max_examples=40, deadline=None)
def test_stored_configs_come_back(made):
    stored = config.to_dict(made)
    again = config.from_dict(Experiment, stored)
    assert again == made
    assert all(type(number) in (bool, int, float) for number in (*numbers(again), *numbers(again.optim)))
    assert config.digest(again) == config.digest(made)
    assert config.differences(stored, config.to_dict(again)) == []


@pytest.mark.parametrize(
    "made",
    [
        Experiment(),
        Experiment(Optim(1e-300, 1e16, 0.0, []), epochs=7, teacher="Größe/ä b.pt", seed=-3),
        Experiment(Optim(1e22), teacher="17", flip=False, method="crd"),
    ],
)
def test_a_dump_is_a_config_file(file, made):
    assert config.load(Experiment, file(config.dump(made))) == made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": 3}, "colour"),
        ({"optim": {"nesterov": True}}, "optim.nesterov"),
        ({"epochs": "ten"}, "epochs"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": None}, "epochs needs a value"),
        ({"optim": {"decay": None}}, "decay"),
        ({"optim": 3}, "optim"),
    ],
)
def test_a_stored_config_of_another_version_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        config.from_dict(Experiment, {**config.to_dict(Experiment()), **change})


def test_the_digest_is_a_fixed_number_that_every_field_changes():
    base = Experiment()
    assert config.digest(base) == "455fbdc2245dd4f1c4286e92f3a92014bd91781f590d4447a03e8a9a8fa153c2"
    others = [
        Experiment(epochs=11),
        Experiment(flip=False),
        Experiment(teacher="t"),
        Experiment(Optim(milestones=[5, 3])),
        Experiment(seed=1),
    ]
    assert len({config.digest(made) for made in (base, *others)}) == 6


def test_differences_name_the_keys():
    old = config.to_dict(Experiment())
    new = config.to_dict(Experiment(Optim(decay=0.0), epochs=3))
    assert config.differences(old, new) == ["optim.decay: 0.0005 -> 0.0", "epochs: 10 -> 3"]
    assert config.differences({"a": 1}, {"b": {"c": 2}}) == ["a: 1 -> None", "b.c: None -> 2"]


def test_help_gives_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help")
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "about",
        "--optim.learning_rate",
        "base learning rate",
        "default: 0.05",
        "folder of the run",
    ):
        assert words in text


# Pieces that a hand or a machine might leave in a file: more faults in fewer tries than plain text.
PIECES = (
    "epochs optim optim.decay learning_rate milestones flip method teacher seed kd null ~ true no 3 -1 1e-3 .nan "
    "0x1F 1:30 2001-13-45 &a *a << ! !!int !!float !!set !!omap !!binary !!timestamp !!null !!bool !!map !!str "
    "!!python/name:os.system %YAML --- ... ? [ ] { } , | > ' \" # @ ` é \ufeff \x07"
)
pieces = st.sampled_from(PIECES.split()) | st.sampled_from([": ", ":\n  ", "\n", " ", "\n- ", "\t", "\r", "\x85"])
documents = st.one_of(
    st.lists(pieces, max_size=14).map("".join),
    st.text(max_size=40),
    st.builds("{}: {}\n".format, st.sampled_from(["epochs", "teacher", "flip", "method"]), st.text(max_size=20)),
    st.builds("optim:\n  {}: {} {}\n".format, st.sampled_from(["milestones", "decay"]), pieces, pieces),
)


@given(text=documents)
@example(text="teacher: !!binary x\n")
@example(text="teacher: !!timestamp 2001-13-45\n")
@example(text="epochs: !!int x\n")
@example(text="optim: &a {decay: *a}\n")
@example(text="optim:\n  milestones: &a [*a]\n")
@example(text="? [epochs]\n: 3\n")
@example(text="? {epochs: 3}\n: 3\n")
@example(text="epochs: !!set {a, b}\n")
@example(text="teacher: !!omap [a: 1]\n")
@example(text="!!set {epochs}\n")
@example(text="!!str {epochs: 3}\n")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_config_or_an_input_error(file, text):
    path = file(text.encode("utf-8", "surrogatepass"))
    try:
        made = config.load(Experiment, path)
    except InputError as error:
        assert str(path) in str(error)
        return
    assert config.from_dict(Experiment, config.to_dict(made)) == made
