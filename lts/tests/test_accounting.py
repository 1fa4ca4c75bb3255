from common import cost
from common.errors import InputError

import pytest
import torch
from torch import nn

from lts.accounting import (
    Ledger,
    LevelHistory,
    backward_saved,
    backward_saved_by_layer,
    epoch_cost,
    iteration_ratio,
    layer_macs,
    plot_frozen,
    stability_at,
)
from lts.method import Quantised, quantise
from lts.models import build

SIZES, MACS = {"a": 10, "b": 30}, {"a": 100, "b": 50}


def ledger(*epochs: list[tuple[int, int]], parameters: int = 50) -> Ledger:
    account = Ledger(SIZES, MACS, parameters)
    for epoch in epochs:
        for counts in epoch:
            account.note(torch.tensor(counts))
        account.close_epoch()
    return account


def test_multiply_adds_of_a_batch_and_of_an_image_agree_with_torch_s_counter():
    model, images = build("resnet20", 10), torch.randn(3, 3, 40, 24)
    found = layer_macs(model, images)
    assert sum(found.values()) == cost.macs(model, images)
    assert sum(found.values()) == 3 * sum(layer_macs(model, images[:1]).values())


def test_grouped_and_reused_layers_are_counted_as_they_run():
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
    assert layer_macs(nn.Sequential(conv), torch.randn(2, 4, 5, 6)) == {"0": 2 * 8 * 30 * 2 * 9}
    linear = nn.Linear(4, 4)
    assert sum(layer_macs(nn.Sequential(linear, linear), torch.randn(3, 4)).values()) == 2 * 3 * 16


def test_layers_left_in_full_precision_can_be_left_out_as_the_release_does():
    model, images = build("digits", 10), torch.randn(1, 3, 8, 8)
    full = layer_macs(model, images)
    quantise(model, first_last="fp")
    assert [*layer_macs(model, images, lambda layer: isinstance(layer, Quantised))] == [*full][1:-1]


def test_counting_leaves_mode_buffers_and_hooks_alone():
    model = build("digits", 10).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    layer_macs(model, torch.randn(2, 3, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(m.training and not m._forward_hooks for m in model.modules())


def test_ratio_cost_and_savings_by_hand():
    assert iteration_ratio(20, 50) == 0.4 and backward_saved(0.56) == 0.28
    assert epoch_cost([0.25, 0.5]) == 1.25
    # weight gradients 0.5·100 + 1·50 of 100 + 2·50 that a backward pass has without the first layer's input gradient
    assert backward_saved_by_layer([0.5, 1], [100, 50]) == pytest.approx(100 / 200)


def test_a_network_frozen_everywhere_saves_half_and_a_bit_more_by_layer():
    assert backward_saved(1) == 0.5 < backward_saved_by_layer([1, 1], [100, 50])
    assert backward_saved_by_layer([0, 0], [100, 50]) == 0


def test_the_ledger_adds_up():
    account = ledger([(0, 0), (5, 15)], [(10, 30), (10, 20)])
    assert account.summary() == pytest.approx(
        {
            "frozen_mean": (0 + 20 + 40 + 30) / 4 / 50,
            "frozen_final": 30 / 50,
            "frozen_mean_weights": (0 + 20 + 40 + 30) / 4 / 40,
            "frozen_final_weights": 30 / 40,
            "total_cost": 4 - 90 / 50,
            "backward_saved": 90 / 4 / 50 / 2,
            "backward_saved_by_layer": ((25 / 40) * 100 + (65 / 120) * 50) / 200,
        }
    )
    assert account.curve() == [0.25, 0.875]
    assert account.per_layer()["b"] == {"weights": 30, "macs": 50, "frozen_mean": 65 / 120, "frozen_final": 20 / 30}


def test_an_epoch_reports_mean_final_and_cost():
    account = ledger([(0, 0)])
    account.note(torch.tensor([5, 15]))
    account.note(torch.tensor([5, 25]))
    report = account.close_epoch()
    assert report == pytest.approx(
        {"frozen": 0.6, "frozen_mean": 0.5, "frozen_weights": 0.75, "epoch_cost": 1.0, "total_cost": 2.0}
    )


def test_the_ledger_keeps_counts_not_the_tensor_it_was_given():
    account, counts = Ledger(SIZES, MACS, 50), torch.tensor([1, 1])
    account.note(counts)
    counts += 5
    assert account.close_epoch()["frozen"] == 2 / 50


def test_a_ledger_restored_in_the_middle_of_an_epoch_goes_on_exactly():
    whole, part = ledger([(1, 2), (3, 4)]), ledger([(1, 2), (3, 4)])
    for account in (whole, part):
        account.note(torch.tensor([4, 4]))
    resumed = Ledger(SIZES, MACS, 50)
    resumed.load_state_dict(part.state_dict())
    for account in (whole, resumed):
        account.note(torch.tensor([9, 30]))
        account.close_epoch()
    assert resumed.summary() == whole.summary() and resumed.curve() == whole.curve()


def test_an_empty_ledger_has_a_summary_and_an_empty_epoch_none():
    account = Ledger(SIZES, MACS, 50)
    assert set(account.summary().values()) == {0}
    with pytest.raises(InputError, match="without a step"):
        account.close_epoch()


def test_layers_in_full_precision_work_but_never_freeze():
    account = Ledger({"b": 30}, MACS, 50)
    account.note(torch.tensor([30]))
    account.close_epoch()
    assert account.summary()["backward_saved_by_layer"] == pytest.approx(50 / (2 * 150 - 100))
    assert [*account.per_layer()] == ["b"]


def test_a_quantised_layer_without_multiply_adds_is_refused():
    with pytest.raises(InputError, match="known of the layers c"):
        Ledger(SIZES | {"c": 1}, MACS, 50)


def test_level_stability_is_the_share_on_the_final_level():
    history = LevelHistory()
    for row in ([0, 1, 2, 3], [0, 1, 3, 3], [1, 1, 3, 3], [0, 1, 3, 2]):
        history.note([torch.tensor(row[:2]), torch.tensor([row[2:]])])
    # the first weight leaves its final level for one epoch
    assert history.curve() == [0.5, 0.75, 0.5, 1.0]
    restored = LevelHistory()
    restored.load_state_dict(history.state_dict())
    assert restored.curve() == history.curve()
    assert LevelHistory().curve() == []


def test_of_a_large_layer_evenly_spread_weights_are_remembered():
    history = LevelHistory(limit=4)
    history.note([torch.arange(10), torch.arange(3)])
    assert history.rows[0].tolist() == [0, 2, 5, 7, 0, 1, 2] and history.rows[0].dtype == torch.uint8


def test_stability_is_read_after_a_share_of_the_epochs():
    curve = [0.1, 0.2, 0.3, 0.4]
    assert [stability_at(curve, share) for share in (0.01, 0.25, 0.5, 1)] == [0.1, 0.1, 0.2, 0.4]


def test_the_plot_is_a_picture(tmp_path):
    plot_frozen(tmp_path / "frozen.png", {"linear": [0, 0.5, 1], "sine": [0, 0.7, 1]})
    content = (tmp_path / "frozen.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5000
    plot_frozen(tmp_path / "other.png", {"linear": [1, 1, 1], "sine": [0, 0.7, 1]})
    assert (tmp_path / "other.png").read_bytes() != content
