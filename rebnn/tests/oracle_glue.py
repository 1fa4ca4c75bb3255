"""What bert_*.npz hold: binarisers, a linear layer, boolean attention, a small BiT and the losses, in float64."""

from collections.abc import Callable

import numpy as np
import torch
from transformers import BertConfig

from rebnn.glue import losses, quantisers
from rebnn.glue.bert import binary_bert
from rebnn.glue.layers import Form, SignLinear, Steps
from rebnn.tests.oracle_networks import near

Arrays = dict[str, np.ndarray]


def double(value: np.ndarray) -> torch.Tensor:
    """float64, with a gradient."""
    return torch.from_numpy(np.asarray(value)).double().requires_grad_()


def check_elastic(arrays: Arrays, name: str, function: Callable, positive: bool) -> None:
    """An elastic binariser with the step size of its first input and with 0.6."""
    given = np.abs(arrays["in_x"]) if positive else arrays["in_x"]
    steps = {"": float(quantisers.first_step(double(given), positive)), "_alpha06": 0.6}
    near(f"{name}_alpha_init", torch.tensor(steps[""]), arrays[f"out_{name}_alpha_init"])
    for suffix, step in steps.items():
        x, alpha = double(given), double(step)
        out = function(x, alpha)
        out.backward(torch.from_numpy(arrays["in_grad"]).double())
        near(f"{name}{suffix}", out, arrays[f"out_{name}{suffix}"])
        near(f"grad of {name}{suffix}", x.grad, arrays[f"grad_{name}_x{suffix}"])
        near(f"alpha of {name}{suffix}", alpha.grad, arrays[f"grad_{name}{suffix or '_alpha'}"])


def check_quantizers(arrays: Arrays) -> None:
    """bert_quantizers: BiT's elastic binarisers and weights."""
    check_elastic(arrays, "signed", quantisers.elastic_sign, False)
    check_elastic(arrays, "unsigned", quantisers.elastic_positive, True)
    for layerwise in (0, 1):
        weight = double(arrays["in_weight"])
        out = quantisers.binarise_bit(weight, per_row=not layerwise)
        out.backward(torch.from_numpy(arrays["in_grad_weight"]).double())
        near("weights", out, arrays[f"out_bwn_layerwise{layerwise}"])
        near("their gradient", weight.grad, arrays[f"grad_bwn_layerwise{layerwise}"])


def check_bibert_linear(arrays: Arrays) -> None:
    """bert_bibert_linear: the layer with BiBERT's own scale, and boolean attention."""
    rows, columns = arrays["param_weight"].shape
    layer = SignLinear(columns, rows, binarizer="reactnet", centre="row").double()
    layer.load_state_dict({name: torch.from_numpy(arrays[f"param_{name}"]) for name in ("weight", "bias")})
    x = double(arrays["in_x"])
    out = layer(x)
    out.backward(torch.from_numpy(arrays["in_grad_y"]).double())
    found = {"y": out, "x": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    for name, value in found.items():
        near(name, value, arrays[f"out_{name}" if name == "y" else f"grad_{name}"])
    scores = double(arrays["in_attention_scores"])
    attention = quantisers.boolean(scores)
    attention.backward(torch.from_numpy(arrays["in_grad_attention"]).double())
    near("attention", attention, arrays["out_bool_attention"])
    near("gradient of attention", scores.grad, arrays["grad_attention"])


@torch.no_grad()
def check_bit_small(arrays: Arrays) -> None:
    """bert_bit_small: a BiT with the file's sizes and state, in evaluation mode."""
    state = {key.removeprefix("param_"): torch.from_numpy(v) for key, v in arrays.items() if key.startswith("param_")}
    config = BertConfig(
        vocab_size=int(arrays["hp_vocab"]),
        hidden_size=int(arrays["hp_hidden"]),
        num_hidden_layers=int(arrays["hp_layers"]),
        num_attention_heads=int(arrays["hp_heads"]),
        intermediate_size=int(arrays["hp_intermediate"]),
        num_labels=int(arrays["hp_labels"]),
        max_position_embeddings=len(state["bert.embeddings.position_embeddings.weight"]),
        type_vocab_size=len(state["bert.embeddings.token_type_embeddings.weight"]),
    )
    network = binary_bert(config, Form("bit", "recipe")).double().eval()
    network.load_state_dict(state)
    for module in network.modules():
        if isinstance(module, Steps):
            module.untouched = frozenset()  # step sizes are the file's
    trace = network(*(torch.from_numpy(arrays[f"in_{name}"]) for name in ("ids", "segments", "mask")))
    found = {"logits": trace.logits}
    found |= {f"hidden{i}": value for i, value in enumerate(trace.hidden)}
    found |= {f"attention_scores{i}": value for i, value in enumerate(trace.scores)}
    wanted = {key.removeprefix("out_"): value for key, value in arrays.items() if key.startswith("out_")}
    assert wanted.keys() - {"sign_margin"} <= found.keys() and "logits" in wanted
    for name in wanted.keys() - {"sign_margin"}:
        near(name, found[name], wanted[name])


def check_losses(arrays: Arrays) -> None:
    """bert_losses: soft cross entropy, direction matching, mean squared difference."""
    pair = [torch.from_numpy(arrays[f"in_{side}"]).double() for side in ("student", "teacher")]
    scores = [torch.from_numpy(arrays[f"in_{side}_scores"]).double() for side in ("student", "teacher")]
    near("soft cross entropy", losses.soft_cross_entropy(*pair), arrays["out_soft_cross_entropy"])
    near("direction matching", losses.direction_matching(*scores), arrays["out_direction_matching"])
    near("mse", torch.nn.functional.mse_loss(*scores), arrays["out_mse"])


CHECKS = {
    "bert_quantizers": check_quantizers,
    "bert_bibert_linear": check_bibert_linear,
    "bert_bit_small": check_bit_small,
    "bert_losses": check_losses,
}
