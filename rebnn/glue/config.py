"""What an experiment with BERT consists of; sections refer to the paper's specification in README.md."""

from dataclasses import dataclass, field
from typing import Literal

from common.config import Count, Fraction, Index, NonNegative, Positive
from common.run import Runtime


@dataclass(frozen=True)
class Text:
    """A task on sentences and how it is fed (section 5)."""

    name: Literal["topics", "cola", "mnli", "mrpc", "sst2", "stsb", "qqp", "qnli", "rte"] = "sst2"
    """topics (passages of Python's reference, inside the standard library), or a GLUE task"""
    root: str = "data/glue"
    """folder that holds the task's own folder (CoLA, MNLI, MRPC, SST-2, STS-B, QQP, QNLI, RTE), or that folder"""
    evaluate: Literal["dev", "test"] = "dev"
    """part that is evaluated; GLUE's own test parts have no labels"""
    vocab: str | None = None
    """vocabulary: vocab.txt, or a folder that holds it, or with data.download the name of a model on the Hugging Face
    hub; by default that of the given weights, or without weights one trained on the training text"""
    download: bool = False
    """fetch the vocabulary of the model that data.vocab names"""
    vocab_size: Count = 30522
    """word pieces: what a trained vocabulary has at most, and what a network has before its vocabulary is known"""
    max_length: Count = 128
    """word pieces of a sample, [CLS] and [SEP] included; what is longer is cut and counted in the log"""
    trim: bool = False
    """cut a batch at its longest sample; the releases always pad to max_length"""
    limit: Index = 0
    """use only the first so many training and evaluated samples; 0 uses all"""
    batch_size: Count = 16
    """samples of a step, over all processes (section 4)"""
    test_batch_size: Count = 128
    """samples of an evaluation step, over all processes"""


@dataclass(frozen=True)
class Network:
    """Sizes of teacher and student: BERT-base (section 3.5)."""

    hidden: Count = 768
    """width of the hidden states"""
    layers: Count = 12
    """layers of the encoder"""
    heads: Count = 12
    """heads of a layer"""
    intermediate: Count = 3072
    """neurons inside a layer's FFN"""
    positions: Count = 512
    """longest sequence in word pieces"""
    dropout: Fraction = 0.1
    """dropout of hidden states"""
    attention_dropout: Fraction = 0.1
    """dropout of attention"""
    init_std: Positive = 0.02
    """standard deviation of fresh weights (BERT's 0.02; narrow networks that nobody has pre-trained need more)"""


@dataclass(frozen=True)
class Teacher:
    """The real network whose answers, hidden states and relations the student learns."""

    checkpoint: str | None = None
    """fine-tuned weights: a folder with pytorch_model.bin or model.safetensors, such a file, or a run's last.pt;
    without them stage `teacher` trains the network on the labels"""
    start: str | None = None
    """pre-trained weights that stage `teacher` begins with; without them it begins with fresh ones"""
    epochs: Count = 3
    """epochs of stage `teacher` (ours)"""
    lr: Positive = 2e-5
    """highest learning rate of stage `teacher` (ours)"""
    dropout: bool = False
    """leave dropout on while it teaches, as BiT's release does after its first evaluation (section 9, row 16)"""


@dataclass(frozen=True)
class Student:
    """The binary network."""

    recipe: Literal["bibert", "bit", "binarybert"] = "bibert"
    """BiBERT, BiT, or BinaryBERT: 1-bit weights by splitting a ternary network of half the width"""
    start: str | None = None
    """weights to begin with, of any of the forms of teacher.checkpoint; by default the teacher's (binarybert: those of
    stage `ternary`)"""
    bits: Literal[4, 8] = 8
    """bits of BinaryBERT's activations"""
    qkv_bias: bool = False
    """BiT: use the learned biases of Q, K and V, which the release computes and drops (section 9, row 16)"""


@dataclass(frozen=True)
class Binary:
    """The scale α and the balanced parameter γ of the binary weights (section 2)."""

    gamma: Literal["paper", "released", "released_intended", "constant", "max", "none"] = "paper"
    """rule of γ; `none` is a learned scale without reconstruction loss"""
    gamma_value: NonNegative = 1e-4
    """γ of the rule `constant`"""
    binarizer: Literal["auto", "paper", "released", "recipe"] = "auto"
    """ReBNN's scale with the paper's or the release's gradients, or the pipeline's own, mean|w| (needs gamma none);
    auto is `released` with the rules of that name, else `paper`"""
    alpha_init: Literal["cam", "randn"] = "cam"
    """the scale at first: mean|w|, or N(0, 1)"""


@dataclass(frozen=True)
class Optim:
    """BertAdam with linear warm-up and linear decay (section 4)."""

    epochs: Count = 10
    """epochs of the student"""
    lr: Positive = 1e-4
    """highest learning rate"""
    ternary_epochs: Count = 3
    """epochs of BinaryBERT's ternary network (ours)"""
    step_lr: Positive = 1e-4
    """highest learning rate of BiT's step sizes, which are not decayed"""
    weight_decay: NonNegative = 0.01
    """decoupled decay, but of biases, LayerNorm, scales and step sizes"""
    warmup: Fraction = 0.1
    """share of the steps in which the rate rises"""
    clip: NonNegative = 1.0
    """largest norm of a parameter's gradient; 0 does not clip"""
    evaluate_every: Index = 0
    """steps between evaluations inside an epoch (BiT: 100); 0 evaluates at the end of each epoch only"""


@dataclass(frozen=True)
class Loss:
    """What the student learns (section 4)."""

    form: Literal["auto", "bibert", "bit"] = "auto"
    """bibert: soft labels, labels, directions of hidden states and of Q, K, V; bit: soft labels and hidden states; auto
    follows the recipe, binarybert as bit"""
    label_weight: NonNegative = 0.5
    """weight of the loss on labels in the form bibert"""


@dataclass(frozen=True)
class Config:
    """One experiment: a fine-tuned BERT and its binary student."""

    seed: Index = 42
    """seed of initialisation, dropout and order (section 4)"""
    data: Text = field(default_factory=Text)
    """Task."""
    network: Network = field(default_factory=Network)
    """Sizes."""
    teacher: Teacher = field(default_factory=Teacher)
    """Teacher."""
    student: Student = field(default_factory=Student)
    """Student."""
    binary: Binary = field(default_factory=Binary)
    """Binarisation."""
    optim: Optim = field(default_factory=Optim)
    """Optimiser."""
    loss: Loss = field(default_factory=Loss)
    """Loss."""
    run: Runtime = field(default_factory=Runtime)
    """Machine."""
