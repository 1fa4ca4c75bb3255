"""Binary BERT: layers and γ, the three pipelines, losses, optimiser, measures, tasks, word pieces, weights."""

import json
import math
from pathlib import Path

from common import config
from common.errors import CheckpointError, InputError
from common.randomness import seed_everything

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from rebnn.glue import losses, metrics, optim, pair, quantisers, tasks, tokenizer, topics, weights
from rebnn.glue.bert import binary_bert, real_bert, start_steps
from rebnn.glue.config import Config
from rebnn.glue.cost import count
from rebnn.glue.data import Sentences, load
from rebnn.glue.layers import BinaryAttention, Form, SplitLinear, Steps
from rebnn.glue.optim import BertAdam, groups, warm_linear
from rebnn.glue.tasks import TASKS, Row
from rebnn.method import Balance, balanced_gamma, binariser, reconstruction_loss
from rebnn.method.balance import packed_signs
from rebnn.method.binariser import binarise
from rebnn.method.linear import BinaryEmbedding, BinaryLinear, centred

PROJECT = Path(pair.__file__).parent.parent
SIZES = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=12,
    num_labels=3,
    initializer_range=0.1,
)
RECIPES = ("bibert", "bit", "binarybert")
BIT_ONLY = 12 * (5 * 768 + 3072 + 6 + 3 * 768 + 4) + 768 + 1
"""learned biases and step sizes of a BiT of BERT-base's size: before each binary layer, and of Q, K, V and attention"""


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)
    torch.set_num_threads(1)


def sentences(batch: int = 3, length: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, segments and mask of samples of falling lengths."""
    ids = torch.randint(5, 40, (batch, length))
    mask = (torch.arange(length) < torch.arange(length, length - batch, -1)[:, None]).long()
    return ids * mask, mask * (torch.arange(length) > 4), mask


# -- binary layers and γ ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", ["none", "row", "tensor"])
def test_a_binary_linear_layer_has_the_papers_gradients(centre):
    layer = BinaryLinear(6, 4, centre=centre).double()
    layer.weight.data.mul_(4)  # some beyond 1
    layer.gamma = torch.rand(4, 1).double()
    x, up = torch.randn(5, 6).double(), torch.randn(5, 4).double()
    (layer(x) * up).sum().backward()
    mean = {"none": 0, "row": layer.weight.mean(1, keepdim=True), "tensor": layer.weight.mean()}[centre]
    w, alpha = (layer.weight - mean).detach(), layer.scaling_factor.abs().detach()
    b, g = w.sign(), up.T @ x
    inner = alpha * g * (w.abs() <= 1) + layer.gamma * (w - alpha * b)
    mean_of = {"none": 0, "row": inner.mean(1, keepdim=True), "tensor": inner.mean()}[centre]
    assert (w.abs() > 1).any()
    assert torch.allclose(layer.weight.grad, inner - mean_of)
    scale = (g * b).sum(1, keepdim=True) - layer.gamma * ((w - alpha * b) * b).sum(1, keepdim=True)
    assert torch.allclose(layer.scaling_factor.grad, scale)


def test_balance_watches_linear_layers_and_embeddings():
    network = nn.Sequential(BinaryEmbedding(7, 6), BinaryLinear(6, 4, centre="row")).double()
    balance = Balance(network)
    before = [layer.latent().detach().clone() for layer in network]
    used = [layer.binary_weight() for layer in network]
    torch.stack([(w * torch.randn_like(w)).sum() for w in used]).sum().backward()
    gradients = [layer.gradient.clone() for layer in network]
    with torch.no_grad():
        for layer in network:
            layer.weight.sub_(layer.weight.grad)
    balance.step()
    wanted = [balanced_gamma(old, layer.latent(), g) for old, layer, g in zip(before, network, gradients)]
    assert torch.cat(wanted).any()
    assert torch.allclose(balance.gamma, torch.cat(wanted))
    assert network[1].gamma.shape == (4, 1) and torch.equal(network[1].gamma.flatten(), wanted[1])
    parts = (reconstruction_loss(m.latent(), m.alpha(), g[:, None]) for m, g in zip(network, wanted))
    assert torch.allclose(balance.reconstruction(), sum(parts))


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_binary_and_what_stays_real(recipe):
    network = binary_bert(SIZES, Form(recipe))
    names = {name.removesuffix(".first").removesuffix(".second") for name in Balance(network).layers}
    attention = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    inside = [f"bert.encoder.layer.{i}.{n}" for i in (0, 1) for n in (*attention, "intermediate.dense", "output.dense")]
    assert names == {"bert.embeddings.word_embeddings", "bert.pooler.dense", *inside}
    assert type(network.classifier) is nn.Linear and type(network.bert.embeddings.position_embeddings) is nn.Embedding


def test_counts_of_bert_base_are_those_of_the_specification():
    with torch.device("meta"):
        network = binary_bert(BertConfig(num_labels=2), Form("bit", "recipe"))
        scaled = binary_bert(BertConfig(num_labels=2), Form("bibert"))
    cost = count(network, 128)
    assert cost.params == 109_595_259 and cost.binary_params == 85_524_480 + 23_440_896
    assert cost.params - cost.binary_params == 629_883
    assert cost.storage_bytes / 2**20 == pytest.approx(15.4, abs=0.05)
    rows = 30522 + 12 * (5 * 768 + 3072) + 768  # ReBNN's scales, one a row
    assert count(scaled, 128).params == 109_595_259 - BIT_ONLY + rows


# -- the networks ----------------------------------------------------------------------------------------------------


def test_the_real_network_is_transformers():
    network = real_bert(SIZES).eval()
    theirs = BertForSequenceClassification(SIZES).eval()
    theirs.load_state_dict(network.state_dict())
    ids, segments, mask = sentences()
    found = network(ids, segments, mask)
    wanted = theirs(ids, attention_mask=mask, token_type_ids=segments, output_hidden_states=True)
    assert torch.allclose(found.logits, wanted.logits, atol=1e-6)
    words = mask.bool()
    for ours, other in zip(found.hidden, wanted.hidden_states, strict=True):
        assert torch.allclose(ours[words], other[words], atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_padding_does_not_change_an_answer(recipe):
    network = binary_bert(SIZES, Form(recipe)).double().eval()
    ids, segments, mask = sentences(1, 6)
    start_steps(network, ids, segments, mask)
    longer = (torch.nn.functional.pad(x, (0, 4)) for x in (ids, segments, mask))
    assert torch.allclose(network(*longer).logits, network(ids, segments, mask).logits, atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("binarizer", ["paper", "released", "recipe"])
def test_every_parameter_gets_a_gradient(recipe, binarizer):
    network = binary_bert(SIZES, Form(recipe, binarizer))
    batch = sentences(8)
    start_steps(network, *batch)
    trace = network(*batch)
    (trace.logits.square().sum() + sum(h.square().sum() for h in trace.hidden)).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of the keys moves all scores of a query alike, which softmax cannot see; BiT drops its shifted Q, K and V.
    assert all(n.endswith(("key.bias", "bias")) and (".move_" in n or ".key." in n) for n in without), without


def test_qkv_biases_of_bit_work_only_where_asked():
    for asked in (False, True):
        network = binary_bert(SIZES, Form("bit", qkv_bias=asked)).eval()
        batch = sentences()
        start_steps(network, *batch)
        before = network(*batch).logits
        for module in network.modules():
            if isinstance(module, BinaryAttention):
                module.move_q.bias.data.fill_(3.0)
        assert torch.equal(before, network(*batch).logits) is not asked


def test_step_sizes_start_from_the_first_input_and_only_then():
    network = binary_bert(SIZES, Form("bit"))
    first = network.bert.encoder.layer[0].attention.self
    assert first.clip_query == quantisers.UNTOUCHED and first.untouched
    ids, segments, mask = sentences()
    start_steps(network, ids, segments, mask)
    x = network.eval().bert.embeddings(ids, token_type_ids=segments)
    assert torch.allclose(first.query.input_clip_val, 2 * x.abs().mean())
    assert not any(m.untouched for m in network.modules() if isinstance(m, Steps))
    kept = {n: p.clone() for n, p in network.named_parameters() if "clip_" in n}
    start_steps(network, *sentences())
    network(*sentences())
    assert all(torch.equal(kept[n], p) for n, p in network.named_parameters() if "clip_" in n)
    positive = network.bert.encoder.layer[0].output.dense
    assert positive.positive and not network.bert.encoder.layer[0].intermediate.dense.positive


# -- BinaryBERT ------------------------------------------------------------------------------------------------------


def test_splitting_keeps_the_ternary_weights():
    weight = torch.randn(5, 64).double()
    weight[0, :3] = 0
    ternary = quantisers.ternarise(weight)
    kept = weight.abs() > 0.7 * weight.abs().mean(1, keepdim=True)
    assert torch.equal(ternary != 0, kept) and torch.equal(ternary.sign(), weight.sign() * kept)
    first, second = quantisers.split_ternary(weight)
    scales = [half.abs().mean(1, keepdim=True) for half in (first, second)]
    assert torch.allclose(first + second, weight) and torch.allclose(*scales)
    assert torch.allclose(sum(s * half.sign() for s, half in zip(scales, (first, second))), ternary)


def test_a_split_network_answers_like_the_ternary_one():
    ternary = binary_bert(SIZES, Form("binarybert", ternary=True)).double().eval()
    network = binary_bert(SIZES, Form("binarybert")).double().eval()
    batch = sentences()
    assert not torch.allclose(network(*batch).logits, ternary(*batch).logits)
    weights.split(network, ternary)
    assert torch.allclose(network(*batch).logits, ternary(*batch).logits, atol=1e-9)
    inner = network.bert.encoder.layer[0].intermediate.dense
    assert isinstance(inner, SplitLinear) and inner.out_features == 16 and network.bert.pooler.dense.out_features == 16


@pytest.mark.parametrize(("bits", "levels"), [(4, 15), (8, 255)])
def test_k_bit_activations(bits, levels):
    x = torch.linspace(-1, 2, 4001).double()[None]
    found = quantisers.k_bit(x, bits)
    assert (found - x).abs().max() <= 2 / (levels - 1) + 1e-12 and found.max() == 2
    assert len(found.unique()) <= levels
    assert torch.equal(quantisers.k_bit(3 * x, bits)[0, -1], 3 * found[0, -1])


# -- losses, optimiser, measures -------------------------------------------------------------------------------------


def test_losses_are_zero_where_student_and_teacher_agree():
    x = [torch.randn(2, 5, 4) for _ in range(3)]
    heads = [[torch.randn(2, 2, 5, 3) for _ in range(3)] for _ in range(2)]
    assert losses.hidden_mse(x, x) == 0 and losses.hidden_direction(x, [3 * y for y in x]) < 1e-5
    assert losses.relation_loss(heads, heads) == 0
    assert losses.relation_loss(heads, [[y.flip(2) for y in layer] for layer in heads]) > 0.1
    scores = losses.similarity(torch.full((1, 1, 2, 1), 20.0) * torch.tensor([1.0, -1.0])[:, None])
    assert scores.flatten().tolist() == [400.0, 0.0, 0.0, 400.0], "entries up to -100 are 0"


@pytest.mark.parametrize("gamma", [None, 0.3])
def test_binarising_centred_rows_without_a_copy_is_binarising_the_copy(gamma):
    weight = torch.randn(500, 300, dtype=torch.float64, requires_grad=True)  # more than one block of rows
    alpha = (torch.rand(500, 1, dtype=torch.float64) + 0.1).requires_grad_()
    gamma = None if gamma is None else torch.full((500, 1), gamma, dtype=torch.float64)
    found, expected = (
        binarise(weight, alpha, gamma, weight.detach().mean(1, keepdim=True)),
        binarise(centred(weight, "row"), alpha, gamma),
    )
    assert torch.equal(found, expected)
    direction = torch.randn_like(weight)
    for ours, theirs in zip(*(torch.autograd.grad(one, (weight, alpha), direction) for one in (found, expected))):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mean", [False, True], ids=["as it is", "centred"])
def test_blocks_of_rows_change_nothing(monkeypatch, mean):
    weight, alpha, gamma = torch.randn(7, 6, requires_grad=True), torch.rand(7, 1, requires_grad=True), torch.rand(7, 1)
    with torch.no_grad():
        weight[2, 3], weight[5] = 0, 0.5
    means = weight.detach().mean(1, keepdim=True) if mean else None
    grad = torch.randn(7, 6)
    found = []
    for block in (binariser.BLOCK, 12, 1):
        monkeypatch.setattr(binariser, "BLOCK", block)
        used = binarise(weight, alpha, gamma, means)
        found.append([used, *torch.autograd.grad(used, (weight, alpha), grad), packed_signs(weight, means)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("block", [5, optim.BLOCK], ids=["in blocks", "at once"])
@pytest.mark.parametrize("shape", [(4,), ()], ids=["vector", "scalar"])
def test_bert_adam_is_its_formula(monkeypatch, block, shape):
    monkeypatch.setattr(optim, "BLOCK", block)
    weight, other = nn.Parameter(torch.randn(3, 4).double()), nn.Parameter(torch.randn(shape).double())
    optimiser = BertAdam(
        [{"params": [weight], "weight_decay": 0.1}, {"params": [other], "weight_decay": 0.0}], 1e-2, clip=1.0
    )
    state = {p: (torch.zeros_like(p), torch.zeros_like(p), p.detach().clone()) for p in (weight, other)}
    for _ in range(4):
        for p, decay in ((weight, 0.1), (other, 0.0)):
            p.grad = torch.randn_like(p) * 3
            g = p.grad / max(1.0, float(p.grad.norm()))
            mean, square, w = state[p]
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
            state[p] = mean, square, w - 1e-2 * (mean / (square.sqrt() + 1e-6) + decay * w)
        optimiser.step()
        for p in (weight, other):
            assert torch.allclose(p, state[p][2], rtol=1e-5, atol=1e-8)


def test_warm_up_and_decay():
    factors = [warm_linear(step, 20, 0.1) for step in range(20)]
    assert factors[:3] == [0, 0.5, 1.0] and factors[11] == pytest.approx(0.5) and factors[-1] == pytest.approx(1 / 18)
    assert warm_linear(0, 20, 0.0) == 1.0


def test_groups_of_the_optimiser():
    network = binary_bert(SIZES, Form("bit"))
    decayed, plain, steps = groups(network, 1.0, 0.5, 0.01)
    names = {id(p): name for name, p in network.named_parameters()}
    assert all(names[id(p)].endswith("weight") and p.ndim == 2 for p in decayed["params"])
    assert {names[id(p)].rpartition(".")[2] for p in plain["params"]} == {"bias", "scaling_factor", "weight"}
    assert len(steps["params"]) == 2 * (6 + 4) + 1 and steps["top"] == 0.5 and steps["weight_decay"] == 0
    assert len(names) == sum(len(g["params"]) for g in (decayed, plain, steps))


def test_measures_agree_with_other_libraries():
    scipy_stats, sklearn_metrics = pytest.importorskip("scipy.stats"), pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    x, y = rng.integers(0, 6, 50) / 2, rng.normal(size=50)
    pair_of = lambda *arrays: [torch.from_numpy(array) for array in arrays]
    assert metrics.f1(*pair_of(a, b)) == pytest.approx(sklearn_metrics.f1_score(b, a))
    assert metrics.matthews(*pair_of(a, b)) == pytest.approx(sklearn_metrics.matthews_corrcoef(b, a))
    assert metrics.pearson(*pair_of(x, y)) == pytest.approx(scipy_stats.pearsonr(x, y)[0])
    assert metrics.spearman(*pair_of(x, y)) == pytest.approx(scipy_stats.spearmanr(x, y)[0])


def test_measures_without_a_value_are_zero_and_the_score_chooses():
    constant, labels = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 0, 1])
    assert metrics.matthews(constant, labels) == 0 and metrics.f1(constant, constant) == 0
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = metrics.measured(("accuracy", "f1"), logits, labels)
    assert found["score"] == found["accuracy"] == 75 and found["f1"] == pytest.approx(80)
    series = torch.tensor([1.0, 2.0, 3.0, 10.0])
    both = metrics.measured(("pearson", "spearman"), series[:, None], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert both["spearman"] == pytest.approx(100) and both["score"] == pytest.approx((100 + both["pearson"]) / 2)


# -- tasks and word pieces -------------------------------------------------------------------------------------------

ROWS = {
    "cola": (None, "gj04\t1\t\tthe cat sat", ("the cat sat", None, 1)),
    "sst2": ("sentence\tlabel", 'a "fine" film \t0', ('a "fine" film ', None, 0)),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tone\ttwo", ("one", "two", 1)),
    "stsb": ("\t".join("abcdefghij"), "\t".join([*"0123456", "one", "two", "3.800"]), ("one", "two", 3.8)),
    "qqp": ("id\tqid1\tqid2\tq1\tq2\tlabel", "0\t1\t2\tone\ttwo\t0", ("one", "two", 0)),
    "mnli": ("\t".join("abcdefghijkl"), "\t".join([*"01234567", "one", "two", "x", "neutral"]), ("one", "two", 2)),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tone\ttwo\tnot_entailment", ("one", "two", 1)),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tone\ttwo\tentailment", ("one", "two", 0)),
}


def write_task(root: Path, name: str, repeat: int = 1) -> Path:
    """A task of one row in GLUE's layout."""
    header, row, _ = ROWS[name]
    for part in ("train", *TASKS[name].dev):
        path = root / TASKS[name].folder / f"{part}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*([header] if header else []), *[row] * repeat, ""]), encoding="utf-8")
    return root


@pytest.mark.parametrize("name", TASKS)
def test_the_layouts_of_glue(tmp_path, name):
    write_task(tmp_path, name, 2)
    first, second, label = ROWS[name][2]
    for root in (tmp_path, tmp_path / TASKS[name].folder):
        rows, short = tasks.read(TASKS[name], root, TASKS[name].dev[-1])
        assert rows == [Row(first, second, label)] * 2 and short == 0


def test_short_rows_of_qqp_are_skipped_and_counted(tmp_path):
    path = write_task(tmp_path, "qqp") / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "3\t4\tbroken\n")
    assert [len(x) if isinstance(x, list) else x for x in tasks.read(TASKS["qqp"], tmp_path, "train")] == [1, 1]


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("sst2", "fine\t2", "train.tsv:2: '2' is no label of SST-2"),
        ("sst2", "fine", "train.tsv:2: has 1 columns"),
        ("mnli", "\t".join([*"01234567", "one", "two", "-"]), "'-' is no label of MNLI"),
        ("stsb", "\t".join([*"0123456", "one", "two", "nan"]), "not a finite number"),
        ("rte", "", "holds no samples"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, name, row, words):
    write_task(tmp_path, name)
    (tmp_path / TASKS[name].folder / "train.tsv").write_text(f"header\n{row}\n")
    with pytest.raises(InputError, match=words):
        tasks.read(TASKS[name], tmp_path, "train")


def test_a_task_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"CoLA/train.tsv: there is no such file, nor .*train.tsv; get CoLA"):
        tasks.read(TASKS["cola"], tmp_path, "train")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40))
def test_pairs_are_cut_token_by_token_from_the_longer_end(first, second, budget):
    a, b = first, second
    while a + b > budget:
        if a > b:
            a -= 1
        else:
            b -= 1
    assert tokenizer.cut(first, second, budget) == (a, b)


TEXTS = ["The quick brown fox", "jumps over the lazy dog!", "naïve Cafés, 42 of them"]


def test_word_pieces_are_those_of_transformers(tmp_path):
    from transformers import BertTokenizerFast

    words = tokenizer.train(TEXTS * 3, 120)
    (tmp_path / "vocab.txt").write_text("\n".join([*words.vocabulary, ""]), encoding="utf-8")
    assert tokenizer.read(tmp_path).vocabulary == tokenizer.read(tmp_path / "vocab.txt").vocabulary == words.vocabulary
    theirs = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    rows = [Row(a, b, 0.0) for a in TEXTS for b in TEXTS]
    found = Sentences(rows, TASKS["mrpc"], words, 64)
    wanted = theirs([r.first for r in rows], [r.second for r in rows], padding="max_length", max_length=64)
    ids, segments, mask, _ = found.fetch(torch.arange(len(rows)))
    assert ids.tolist() == wanted["input_ids"] and mask.tolist() == wanted["attention_mask"]
    assert segments.tolist() == wanted["token_type_ids"]
    assert found.truncated == 0 and Sentences(rows, TASKS["mrpc"], words, 12).truncated > 0


def test_a_trained_vocabulary_is_always_the_same():
    texts = [row.first for row in topics.read("train")][:300]
    first, second = (tokenizer.train(iter(texts), 400).vocabulary for _ in range(2))
    assert first == second and len(first) == 400 and first[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    with pytest.raises(InputError, match="letters of the text alone"):
        tokenizer.train(texts, 20)


def test_batches_may_be_cut_at_their_longest_sample():
    words = tokenizer.train(TEXTS * 3, 120)
    found = Sentences([Row(t, None, 0.0) for t in TEXTS], TASKS["sst2"], words, 64)
    index = torch.tensor([2, 0])
    whole, cut = found.fetch(index), found.fetch(index, trim=True)
    assert whole[0].shape[1] == 64 and cut[0].shape[1] == int(found.lengths[index].max())
    assert all(torch.equal(a[:, : cut[0].shape[1]], b) for a, b in zip(whole[:3], cut[:3]))
    assert not whole[1].any(), "a single sentence is segment 0"


def test_the_embedded_task_is_in_the_standard_library():
    train, dev = topics.read("train"), topics.read("dev")
    assert {row.label for row in train} == {row.label for row in dev} == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert len(train) > 1000 and 0.2 < len(dev) / len(train) < 0.3
    assert all(len(row.first.split()) == topics.WORDS for row in train)


# -- vocabularies and weights from outside ---------------------------------------------------------------------------


def experiment(*words: str) -> Config:
    return config.override(config.load(Config, PROJECT / "configs" / "embedded_glue.yaml"), list(words))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no readable vocabulary"),
        ("[PAD]\n[UNK]\na\n", r"lacks \[CLS\], \[SEP\]"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na\n", "holds 'a' twice"),
    ],
)
def test_a_vocabulary_that_cannot_be_used(tmp_path, content, message):
    if content:
        (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        tokenizer.read(tmp_path / "vocab.txt")


def test_weights_without_a_vocabulary_are_refused(tmp_path):
    torch.save(real_bert(SIZES).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"--teacher.checkpoint has no vocabulary beside it .*give --data.vocab"):
        load(experiment(f"--teacher.checkpoint={tmp_path}"))


def test_a_vocabulary_can_be_downloaded_or_the_reason_is_told(tmp_path, monkeypatch):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\n")
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *words: asked.append(words) or tmp_path / "vocab.txt")
    found = load(experiment("--data.vocab=bert-base-uncased", "--data.download=true"))
    assert asked == [("bert-base-uncased", "vocab.txt")] and len(found.words.vocabulary) == 6

    def fail(*_):
        raise OSError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(InputError, match=r"cannot be downloaded \(no route to the hub\); give a local vocab.txt"):
        load(experiment("--data.vocab=bert-base-uncased", "--data.download=true"))


def test_old_files_of_transformers_and_pretrained_ones_load(tmp_path):
    network = real_bert(SIZES)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): v for name, v in network.state_dict().items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): v for name, v in old.items()}
    old["bert.embeddings.position_ids"] = torch.arange(12)[None]
    torch.save(old, tmp_path / "pytorch_model.bin")
    other = real_bert(SIZES)
    weights.load_real(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values()))
    pretrained = {n: v for n, v in old.items() if not n.startswith("classifier")}
    pretrained["cls.predictions.bias"] = torch.ones(4)
    torch.save(pretrained, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="classifier"):
        weights.load_real(real_bert(SIZES), tmp_path)
    fresh = real_bert(SIZES)
    head = fresh.classifier.weight.clone()
    weights.load_real(fresh, tmp_path, head=False)
    assert torch.equal(fresh.classifier.weight, head)
    assert torch.equal(fresh.bert.pooler.dense.weight, network.bert.pooler.dense.weight)


def test_a_folder_of_transformers_loads(tmp_path):
    network = real_bert(SIZES)
    theirs = BertForSequenceClassification(SIZES)
    theirs.load_state_dict(network.state_dict())
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 16
    other = real_bert(SIZES)
    weights.load_real(other, tmp_path)
    assert torch.equal(other.classifier.weight, network.classifier.weight)


@pytest.mark.parametrize("recipe", ["bibert", "bit"])
def test_a_student_starts_from_a_real_network(tmp_path, recipe):
    real = real_bert(SIZES)
    real.bert.embeddings.word_embeddings.weight.data[0] = 0  # as transformers leaves the padding
    torch.save(real.state_dict(), tmp_path / "pytorch_model.bin")
    network = binary_bert(SIZES, Form(recipe))
    lacking = weights.load_student(network, tmp_path)
    layer = network.bert.encoder.layer[1].intermediate.dense
    assert torch.equal(layer.weight, real.bert.encoder.layer[1].intermediate.dense.weight)
    assert torch.allclose(layer.scaling_factor.flatten(), layer.weight.abs().mean(1))
    assert network.bert.embeddings.word_embeddings.weight[0].any(), "a row of zeros has no sign"
    assert Balance(network).smallest_scale() > 0
    assert ("clip_" in " ".join(lacking)) == (recipe == "bit")


def test_a_released_bit_loads_and_starts_only_what_it_has_not_set(tmp_path):
    released = binary_bert(SIZES, Form("bit", "recipe"))
    start_steps(released, *sentences())
    released.bert.encoder.layer[0].attention.self.clip_key.data.fill_(quantisers.UNTOUCHED)
    torch.save({f"module.{n}": v for n, v in released.state_dict().items()}, tmp_path / "pytorch_model.bin")
    network = binary_bert(SIZES, Form("bit", "recipe"))
    assert weights.load_student(network, tmp_path) == []
    untouched = {n: m.untouched for n, m in network.named_modules() if isinstance(m, Steps) and m.untouched}
    assert untouched == {"bert.encoder.layer.0.attention.self": {"clip_key"}}
    batch = sentences()
    network.eval()(*batch)
    assert network.bert.encoder.layer[0].attention.self.clip_key != quantisers.UNTOUCHED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_labels": 2}, "trained for 2 outputs, but the task has 3"),
        ({"hidden_size": 8}, "of another shape"),
        ({"vocab_size": 41}, "of another shape"),
        ({"num_hidden_layers": 1}, "missing"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, message):
    torch.save(real_bert(BertConfig(**{**SIZES.to_dict(), **change})).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        weights.load_student(binary_bert(SIZES, Form("bibert")), tmp_path)


def test_half_the_width_keeps_the_heaviest_heads_and_neurons(tmp_path):
    real = real_bert(SIZES)
    layer = real.bert.encoder.layer[0]
    layer.attention.output.dense.weight.data[:, :8] *= 0.1  # the second head is heavier
    layer.output.dense.weight.data[:, ::2] *= 0.1  # and so are odd neurons
    torch.save(real.state_dict(), tmp_path / "pytorch_model.bin")
    network = binary_bert(SIZES, Form("binarybert", ternary=True))
    weights.halves_of(network, tmp_path)
    half = network.bert.encoder.layer[0]
    assert torch.equal(half.attention.self.query.weight, layer.attention.self.query.weight[8:])
    assert torch.equal(half.attention.output.dense.weight, layer.attention.output.dense.weight[:, 8:])
    assert torch.equal(half.intermediate.dense.weight, layer.intermediate.dense.weight[1::2])
    assert torch.equal(half.intermediate.dense.bias, layer.intermediate.dense.bias[1::2])
    assert torch.equal(half.output.dense.weight, layer.output.dense.weight[:, 1::2])
    assert math.isclose(half.attention.self.dropout, 0.1)
