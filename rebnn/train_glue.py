"""Binary BERT: a fine-tuned BERT teaches a student whose linear layers and word embedding have 1-bit weights.

python train_glue.py --config configs/embedded_glue.yaml     topics of Python's reference, about a minute on a CPU
python train_glue.py --config configs/glue_sst2_bert.yaml --data.root $GLUE --teacher.checkpoint FOLDER
torchrun --nproc_per_node=8 train_glue.py --config configs/glue_mnli_bert.yaml
"""

import json
from collections.abc import Callable
from pathlib import Path

from common import distributed
from common.config import parse
from common.labelled import epoch_order
from common.run import Run, entry, run_folder, stages_to_run

import torch
import torch.nn.functional as F
from torch import Tensor

from rebnn import families, figures
from rebnn.glue import losses
from rebnn.glue.bert import Bert, Trace
from rebnn.glue.config import Config
from rebnn.glue.data import Batch, Data, batches, load, test_batches
from rebnn.glue.metrics import measured
from rebnn.glue.optim import BertAdam, groups, warm_linear
from rebnn.glue.pair import build, build_student, build_teacher, build_ternary, check, frozen_teacher
from rebnn.method import Balance
from rebnn.train import latent_weights, mean_of, mean_over_processes, scales

__all__ = ["Config", "build", "evaluate", "main"]

STAGES = ("teacher", "ternary", "student")
Terms = dict[str, Tensor]


def main(argv: list[str]) -> Path:
    """Run the stages of one experiment; returns the run folder."""
    file = families.config_file(argv)
    families.require(families.family_of_file(file), "glue", "train", file)
    config, command, name = parse(Config, argv, __doc__, STAGES)
    check(config)
    data = load(config)
    for stage in stages_to_run(command, "rebnn", STAGES):
        if command.stage == "all" and not wanted(config, stage):
            continue
        with Run("rebnn", config, command, name, stage, data.about(config.data.name)) as run:
            {"teacher": train_teacher, "ternary": train_ternary, "student": train_student}[stage](run, config, data)
    return run_folder(command, name)


def wanted(config: Config, stage: str) -> bool:
    """A teacher is trained unless it is given; a ternary network where BinaryBERT splits one."""
    if stage == "ternary":
        return config.student.recipe == "binarybert" and not config.student.start
    return stage == "student" or not config.teacher.checkpoint


# -- the stages ------------------------------------------------------------------------------------------------------


def train_teacher(run: Run, config: Config, data: Data) -> None:
    """Fine-tune a real BERT on the labels, from given weights or from fresh ones."""
    network = build_teacher(run, config, data)
    lr, decay = config.teacher.lr, config.optim.weight_decay

    def loss(trace: Trace, batch: Batch) -> Terms:
        return {"label": on_labels(trace.logits, batch.labels)}

    optimiser = BertAdam(groups(network, lr, lr, decay), lr, decay, config.optim.clip)
    fit(run, config, data, network, optimiser, config.teacher.epochs, loss)


def train_ternary(run: Run, config: Config, data: Data) -> None:
    """BinaryBERT's first half: ternary weights, half the width; only what does not depend on the width is compared."""
    network = build_ternary(run, config, data)
    distil(run, config, data, network, config.optim.ternary_epochs)


def train_student(run: Run, config: Config, data: Data) -> None:
    """The binary network, with γ on all its binary layers."""
    everything = torch.arange(len(data.train))
    order = epoch_order(config.seed, 1, everything)
    first = next(batches(data.train, order, config.data, run.device, micro_batches=run.runtime.micro_batches))[0]
    network, balance = build_student(run, config, data, first)
    distil(run, config, data, network, config.optim.epochs, balance)
    if distributed.is_main():
        lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        figures.draw_oscillation(lines, run.sample("oscillation.png"))
        figures.draw_latent(lines, run.sample("latent_weights.png"))


def distil(run: Run, config: Config, data: Data, network: Bert, epochs: int, balance: Balance | None = None) -> None:
    """The student learns the teacher's answers and what leads to them (section 4)."""
    ask = frozen_teacher(run, config, data)
    form = config.loss.form
    form = ("bibert" if config.student.recipe == "bibert" else "bit") if form == "auto" else form

    def loss(trace: Trace, batch: Batch) -> Terms:
        teacher = ask(batch)
        terms = {"soft": on_teacher(trace.logits, teacher.logits, batch.labels)}
        if form == "bit":
            return terms | {"hidden": losses.hidden_mse(trace.hidden, teacher.hidden)}
        terms["label"] = config.loss.label_weight * on_labels(trace.logits, batch.labels)
        terms["hidden"] = losses.hidden_direction(trace.hidden, teacher.hidden)
        return terms | {"relations": losses.relation_loss(trace.relations, teacher.relations)}

    optim = config.optim
    parameters = groups(network, optim.lr, optim.step_lr, optim.weight_decay)
    optimiser = BertAdam(parameters, optim.lr, optim.weight_decay, optim.clip)
    fit(run, config, data, network, optimiser, epochs, loss, balance)


def on_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, or the squared difference where a number is predicted; logits [B, C]."""
    return F.cross_entropy(logits.float(), labels) if labels.dtype == torch.int64 else _squared(logits[:, 0], labels)


def on_teacher(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Soft cross entropy, or the squared difference of the logits where a number is predicted; logits [B, C]."""
    if labels.dtype == torch.int64:
        return losses.soft_cross_entropy(logits.float(), teacher.float())
    return _squared(logits, teacher)


def _squared(found: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(found.float(), wanted.float())


# -- the loop --------------------------------------------------------------------------------------------------------


def fit(
    run: Run,
    config: Config,
    data: Data,
    network: Bert,
    optimiser: BertAdam,
    epochs: int,
    loss: Callable[[Trace, Batch], Terms],
    balance: Balance | None = None,
) -> None:
    """Epochs of BertAdam with warm-up and decay, evaluation, the balance of the weights, and checkpoints."""
    everything = torch.arange(len(data.train))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    progress = {"best": float("-inf"), "history": []}
    seen = torch.zeros(2, dtype=torch.float64, device=run.device)  # sum of losses, samples of this epoch
    per_epoch = -(-len(everything) // config.data.batch_size)
    epoch, step, done = 1, 0, 0
    state = run.resume()
    if state:
        epoch, step, done, progress = (state[key] for key in ("epoch", "step", "done", "progress"))
        network.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        seen.copy_(state["seen"])
        if balance:
            balance.load_state_dict(state["balance"])
    else:
        run.log("data", 0, 0, **data.counts)
        if balance:
            run.log("latent", 0, 0, **latent_of(balance))
    wrapped = distributed.wrap(network)

    def save(best: bool = False) -> None:
        content = {"model": network.state_dict(), "optimiser": optimiser.state_dict(), "progress": progress}
        content |= {"done": done, "seen": seen, "vocabulary": data.words.vocabulary}
        run.save(step, epoch, content | ({"balance": balance.state_dict()} if balance else {}), best)

    def test(**values) -> tuple[dict[str, float], bool]:
        """Evaluate, log, and tell whether it is the best so far."""
        metrics = evaluate(network, data, config, run.device)
        run.log("test", step, epoch, seconds=run.elapsed(), **values, **metrics)
        better = metrics["score"] > progress["best"]
        progress["best"] = max(progress["best"], metrics["score"])
        network.train()
        return metrics, better

    while epoch <= epochs:
        network.train()
        order = epoch_order(config.seed, epoch, everything)
        steps = batches(data.train, order, config.data, run.device, start=done, micro_batches=run.runtime.micro_batches)
        for micro_batches in run.progress(steps, per_epoch - done, f"epoch {epoch}/{epochs}"):
            for group in optimiser.param_groups:
                group["lr"] = group["top"] * warm_linear(step, epochs * per_epoch, config.optim.warmup)
            optimiser.zero_grad(set_to_none=True)
            for batch in micro_batches:
                with run.autocast():
                    trace = wrapped(batch.ids, batch.segments, batch.mask)
                terms = loss(trace, batch)
                total = sum(terms.values())
                (total * batch.weight).backward()
                share = len(batch.index) * (batch.weight > 0)
                seen += torch.stack([total.detach().double() * share, torch.full_like(seen[0], share)])
            step, done = step + 1, done + 1
            run.watch(step, terms | (scales(balance) if balance else {}), parameters)
            optimiser.step()
            if balance:
                balance.step(mean_over_processes)
            if step % run.runtime.log_every == 0:
                notes = {"reconstruction": balance.reconstruction()} if balance else {}
                run.log("train", step, epoch, lr=optimiser.param_groups[0]["lr"], **terms, **notes)
            every = config.optim.evaluate_every
            better = bool(every) and step % every == 0 and done < per_epoch and test()[1]
            if run.should_stop(step):
                save(better)
                run.leave()
            if better or run.should_save(step):
                save(better)
        summary = {"loss": mean_of(seen)}
        if balance:
            report = {name: value for name, value in balance.report().items() if not name.endswith("_channels")}
            run.log("oscillation", step, epoch, **report)
            run.log("latent", step, epoch, **latent_of(balance))
            summary |= {name: report[name] for name in ("flip", "sequential", "epoch_flip", "exact_zeros")}
        progress["history"].append(summary)
        metrics, better = test(train_loss=summary["loss"])
        run.say(f"epoch {epoch}/{epochs}: loss {summary['loss']:.4f}, score {metrics['score']:.2f}")
        epoch, done = epoch + 1, 0
        save(better)


def latent_of(balance: Balance) -> dict:
    """Histograms of the latent weights of the first linear layer (the first binary layer is the word embedding)."""
    return latent_weights(balance, next((name for name in balance.layers if ".layer." in name), None))


@torch.inference_mode()
def evaluate(network: Bert, data: Data, config: Config, device: torch.device) -> dict[str, float]:
    """The task's measures in per cent on every evaluated part, and the score that chooses best.pt.

    A second part (MNLI's mismatched development set) has its name behind that of the measure.
    """
    network.eval()
    found = {}
    for number, (part, sentences) in enumerate(data.evaluated.items()):
        logits = torch.zeros(len(sentences), data.task.outputs, dtype=torch.float64, device=device)
        for batch in test_batches(sentences, config.data, device):
            with torch.autocast(device.type, torch.bfloat16, enabled=config.run.precision == "bf16"):
                logits[batch.index] = network(batch.ids, batch.segments, batch.mask).logits.double()
        metrics = measured(data.task.measures, distributed.sum_(logits).cpu(), sentences.labels)
        suffix = f"_{part.rpartition('_')[2]}" if number else ""
        found |= {f"{name}{suffix}": value for name, value in metrics.items()}
    return found


if __name__ == "__main__":
    entry(main)
