"""What condensation.npz, schedule.npz and train_sim.npz hold: the paper's own part, alone and inside an epoch."""

import numpy as np
import torch

from kcd import distillers, models
from kcd.config import Config, Distill
from kcd.method import Condenser, entropy, kept_size, learning_rate, mix, score
from kcd.pair import StudentStep, feature_shapes
from kcd.tests.oracle_distillers import Archive, assert_close
from kcd.tests.oracle_networks import fill
from kcd.train import sgd

SCORE, RATE, FIRST_EPOCH, LATER = 1e-5, 1e-6, 1e-3, 5e-2
STEPS = 6  # condensations until τ, a constant of the official code
VERSIONS = {2: "remove", 3: "remove+summary"}


def check_condensation(arrays: dict[str, np.ndarray]) -> None:
    """Whole simulated runs, and entropy, blending and sizes alone."""
    file = Archive(arrays)
    for run in range(int(file["hp_n_sims"])):
        check_run(file, f"s{run}")
    assert_close(entropy(file["in_ent_logits"]), file["out_ent"], SCORE, "entropy")
    extreme, exact = entropy(file["in_ent_extreme"]), file["out_ent_extreme_exact"]
    assert_close(extreme, exact, SCORE, "entropy of nearly one-hot predictions")
    official = file["out_ent_extreme_official"]
    known = official.isfinite()  # where the official form underflows it is NaN, and ours must not be
    assert extreme.isfinite().all() and torch.allclose(extreme[known], official[known], rtol=SCORE, atol=0)
    kept, lost = file["in_mix_keep"], file["in_mix_lost"]
    assert torch.equal(mix(kept, lost), file["out_mix"]), "blended images differ"
    rate = file["out_mix_rate"]
    ones, zeros = (torch.full((len(kept),), value, dtype=torch.uint8) for value in (255, 0))
    assert torch.equal(mix(ones, zeros), (rate * 255).to(torch.uint8)), "blending rates differ"
    sizes = {}
    for n, tau, number, kept_count in file["out_size_table"].tolist():
        before = n if number == 1 else sizes[n, tau, number - 1]
        sizes[n, tau, number] = kept_size(n, before, tau / 1000, STEPS)
        assert sizes[n, tau, number] == kept_count, f"size {number} of {n} at {tau / 1000}"
    file.finish()


def check_run(file: Archive, run: str) -> None:
    """Every stage of one simulated run: scores, order, partners, images."""
    n, interval, epochs = (int(file[f"hp_{run}_{key}"]) for key in ("N", "T", "epochs"))
    tau = round(float(file[f"hp_{run}_threshold"]), 6)  # stored as float32
    condenser = Condenser(n, version=VERSIONS[int(file[f"hp_{run}_version"])], tau=tau, interval=interval, stages=STEPS)
    images, values = file[f"in_{run}_data"].clone(), file[f"in_{run}_entropy"]
    assert values.shape == (n, epochs) and len(file[f"in_{run}_targets"]) == n
    stages = int(file[f"hp_{run}_stages"])
    assert stages == epochs // interval
    for epoch in range(1, epochs + 1):
        visited = (values[:, epoch - 1] >= 0).nonzero()[:, 0]
        assert set(visited.tolist()) == set(condenser.kept.tolist()), "the run is closed-loop consistent"
        condenser.note(visited, values[visited, epoch - 1])
        condenser.merge()
        if epoch % interval:
            continue
        stage = f"out_{run}_k{epoch // interval - 1}"
        value = score(condenser.total, condenser.visits, condenser.alpha)
        assert_close(value.float(), file[f"{stage}_score"], SCORE, f"{stage} score")
        assert torch.equal(condenser.visits, file[f"{stage}_count"]), f"{stage} visits"
        change = condenser.condense(images)
        assert torch.equal(change["kept"], file[f"{stage}_remain"]), f"{stage} order of what is kept"
        if condenser.version == "remove+summary":
            assert torch.equal(change["lost"], file[f"{stage}_lost"]), f"{stage} lost"
            assert torch.equal(condenser.history[-1][0], file[f"{stage}_mix_remain"]), f"{stage} partners"
            assert torch.equal(images, file[f"{stage}_data"]), f"{stage} images"


def check_schedule(arrays: dict[str, np.ndarray]) -> None:
    """The learning rate of every epoch."""
    file = Archive(arrays)
    for base, name in ((0.05, "out_lr_005"), (0.01, "out_lr_001")):
        ours = [learning_rate(base, epoch, Config().optim.decay_epochs) for epoch in file["out_epoch"].tolist()]
        assert_close(torch.tensor(ours), file[name], RATE, f"rates from {base}")
    file.finish()


def check_train_sim(arrays: dict[str, np.ndarray]) -> None:
    """Epochs of the distillation loop on given batches, from the step that train.py takes."""
    file = Archive(arrays)
    seed, n, classes, batch = (int(file[f"hp_{key}"]) for key in ("seed", "n", "classes", "batch"))
    images = torch.from_numpy(np.random.default_rng(seed + 41).standard_normal((n, 3, 32, 32))).float()
    labels = file["in_y"]
    for method in file.names("hp_(.+)_gamma_alpha_beta"):
        student = fill(models.build("resnet8", classes), seed)
        teacher = fill(models.build("resnet14", classes), seed + 1).eval().requires_grad_(False)
        shapes = [feature_shapes(network, images[:2]) for network in (student, teacher)]
        distiller = distillers.build(method, *shapes, n_data=n, n_classes=classes, seed=seed, labels=labels)
        gamma, alpha, beta = file[f"hp_{method}_gamma_alpha_beta"].tolist()
        config = Config(distill=Distill(method, gamma, alpha, beta))
        step = StudentStep(student, distiller, config)
        optimiser = sgd(config, student.parameters(), 0.05)
        expected, entropies = file[f"out_{method}_acc_loss"], file[f"out_{method}_entropy"]
        for epoch in range(len(expected)):
            step.train()
            order = file[f"in_{method}_order{epoch}"]
            values, total, hits = torch.full((n,), -1.0), 0.0, 0
            for index in order.split(batch):
                features, teacher_logits = teacher(images[index], is_feat=True)
                terms, logits = step(images[index], labels[index], index, features, teacher_logits)
                loss = sum(terms.values())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                values[index] = entropy(logits.detach())
                total += loss.item() * len(index)
                hits += int((logits.argmax(1) == labels[index]).sum())
            tolerance = LATER if epoch else FIRST_EPOCH
            what = f"{method}, epoch {epoch}"
            accuracy, mean_loss = expected[epoch]
            assert_close(torch.tensor([total / len(order)]), mean_loss[None], tolerance, f"{what}: loss")
            assert abs(100 * hits / len(order) - accuracy) < 1e-3, f"{what}: accuracy"
            assert_close(values, entropies[:, epoch], tolerance, f"{what}: entropies")
        with torch.no_grad():
            final = student.eval()(images)
        assert_close(final, file[f"out_{method}_final_logits"], LATER, f"{method}: final logits")
    file.finish()
