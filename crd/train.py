"""Content relationships: teachers trained from scratch, and a student whose images' slices relate as the teacher's do.

python train.py --config cfg.yaml                           embedded photographs, about a minute on two CPU cores
python train.py --config configs/horse2zebra.yaml --data.root $DATA/horse2zebra
torchrun --nproc_per_node=4 train.py --config configs/edges2shoes_resnet.yaml --data.root $DATA/edges2shoes-r
"""

from functools import partial
from pathlib import Path

from common import checkpoint, distributed
from common.config import parse
from common.gan.judge import Judge, draw_samples, turned
from common.gan.perceptual import random_vgg, vgg16
from common.gan.schedule import Epoch, plan
from common.gan.steps import set_rate
from common.gan.teachers import TEACHERS
from common.labelled import batches, describe, epoch_order
from common.run import Run, entry, run_folder, stages_to_run
from common.weights import fit_weights, read_weights

import torch
from torch import nn

from crd import data, models
from crd.config import Config
from crd.student import Student

__all__ = ["Config", "build", "main"]

STAGES = ("teacher", "distil")


def main(argv: list[str]) -> Path:
    """Run one experiment; returns the run folder. Stage `teacher`, which trains no student, runs only by name."""
    config, command, name = parse(Config, argv, __doc__, STAGES)
    train, test = data.load(config)
    about = describe(config.data, train)
    for stage in stages_to_run(command, "crd", STAGES):
        if stage == "teacher" and command.stage == "all":
            continue
        with Run("crd", config, command, name, stage, about) as run:
            Experiment(run, config, train, test, alone=stage == "teacher").fit()
    return run_folder(command, name)


def build(config: Config) -> dict[str, nn.Module]:
    """All networks that a run trains, with fresh weights, and the relations that tie them."""
    relations = models.build_relations(config)
    return models.build_teachers(config) | {"student": models.build_student(config), "relations": relations}


class Experiment:
    """One run: its networks, the flat list of its epochs, the place in that list and the steps done there.

    online: the teacher that is trained. supervisor: the generator whose images the student follows: the online one in
    pix2pix, in CycleGAN the best so far, beside the latest discriminator. alone: train no student.
    """

    def __init__(self, run: Run, config: Config, train, test, alone: bool):
        self.run, self.config, self.train, self.test = run, config, train, test
        networks = {name: network.to(run.device) for name, network in build(config).items()}
        student, _ = networks.pop("student"), networks.pop("relations")
        self.online = TEACHERS[config.model](networks, config.teaching, config.optim, autocast=run.autocast)
        self.generator, self.discriminator = (networks[name] for name in self.online.main)
        self.best = models.generator_of(config.networks, config.networks.teacher_width).to(run.device)
        self.best.load_state_dict(self.generator.state_dict())
        given = bool(config.teacher.checkpoint) and not alone
        if given:
            self._take_teacher()
        vgg = random_vgg() if config.perceptual.network == "random" else vgg16(config.perceptual.weights)
        self.student = Student(config, student, vgg.to(run.device), run.autocast)
        part = "teacher" if alone else "student" if given else "all"
        self.plan = plan(config.model, config.optim, config.judging.every_epochs, part)
        self.judges = {"AtoB": Judge(config.judging, test, run.device)}
        if config.model == "cyclegan" and not given:
            self.judges["BtoA"] = Judge(config.judging, turned(test), run.device, released=False)
        self.place, self.step, self.done = 0, 0, 0
        self.progress = {"teacher_steps": 0, "student_steps": 0, "best": {}}

    # -- the algorithm -----------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Epoch after epoch of the plan: teachers, student or both; judged, drawn and saved where the plan says so."""
        run, config = self.run, self.config
        self._resume()
        while self.place < len(self.plan):
            now, number = self.plan[self.place], self.place + 1
            rate = config.optim.lr * now.factor
            for optimiser in (self.online.generators, self.online.discriminators, self.student.optimiser):
                set_rate(optimiser, rate)
            order = epoch_order(config.seed, number, torch.arange(len(self.train)))
            total = -(-len(order) // config.data.batch_size)
            parts = {"start": self.done, "micro_batches": run.runtime.micro_batches}
            steps = batches(self.train, order, number, config.data, run.device, **parts)
            for batch in run.progress(steps, total - self.done, f"{now.kind} {now.number}, {number}/{len(self.plan)}"):
                self.step, self.done = self.step + 1, self.done + 1
                terms = self._train_step(now, batch)
                if self.step % run.runtime.log_every == 0:
                    run.log(now.kind, self.step, number, lr=rate, **terms)
                self._after_step(now)
            improved = now.judged and self._judge(now.kind)
            if now.judged and distributed.is_main():
                shown = [self._supervisor(now.kind), self.student.network]
                draw_samples(run.sample(f"{number:04d}.png"), self.test, shown, run.device)
            self.place, self.done = number, 0
            self._save(improved)

    def _train_step(self, now: Epoch, batch: list) -> dict[str, torch.Tensor]:
        """A step of the kind that the epoch is of, on the micro-batches of one batch; returns the weighted terms."""
        check = partial(self.run.watch, self.step)
        sources = [part.images for part in batch]
        self.progress["student_steps"] += now.kind != "teacher"
        self.progress["teacher_steps"] += now.kind != "student"
        if now.kind == "student":
            answers = self._answers(self._supervisor(now.kind), sources, learns=False)
            return self.student.step(batch, answers, self.discriminator, check)
        if self.config.model == "cyclegan":
            return self.online.step(batch, check)
        # pix2pix: the teacher's images come from before its step, the discriminator's judgement from after it.
        learns = now.kind == "teacher" or self.step % self.config.optim.student_share == 0
        answers = self._answers(self.generator, sources, learns)
        terms = self.online.step(batch, answers, check) if learns else {}
        if now.kind == "both":
            terms |= self.student.step(batch, answers, self.discriminator, check)
        return terms

    def _answers(self, generator: nn.Module, sources: list[torch.Tensor], learns: bool) -> list[torch.Tensor]:
        """The teacher's image for each micro-batch, with a graph where it is to learn from it."""
        with torch.set_grad_enabled(learns), self.run.autocast():
            return [generator(source) for source in sources]

    def _supervisor(self, kind: str) -> nn.Module:
        """Who is followed in epochs of a kind; running statistics serve where it is not trained itself."""
        if kind != "student":
            return self.generator
        return self.best.eval() if self.config.networks.norm == "batch" else self.best

    def _after_step(self, now: Epoch) -> None:
        """Evaluations and checkpoints inside an epoch, and the end of a run that was told to stop."""
        every = self.config.judging.every_steps
        count = self.progress["student_steps" if now.kind == "student" else "teacher_steps"]
        improved = bool(every) and count % every == 0 and self._judge(now.kind)
        stop = self.run.should_stop(self.step)
        if stop or improved or self.run.should_save(self.step):
            self._save(improved)
        if stop:
            self.run.leave()

    # -- judging -----------------------------------------------------------------------------------------------------

    def _judge(self, kind: str) -> bool:
        """Evaluate what has just been trained, keep the best teacher; whether the student is better than ever."""
        run, name, improved = self.run, self.judges["AtoB"].name, False
        if kind != "student":
            better = [direction for direction in self.judges if self._judge_teacher(direction, name)]
            if "AtoB" in better or (better and self.config.teacher.legacy_best):
                self.best.load_state_dict(self.generator.state_dict())
        if kind != "teacher":
            found = self._evaluate(self.student.network, "AtoB")
            run.log("test", self.step, self.place + 1, seconds=run.elapsed(), **found)
            run.say(f"epoch {self.place + 1}/{len(self.plan)}: student {name} {found[name]:.3f}")
            improved = self._record("student", found[name])
        return improved

    def _judge_teacher(self, direction: str, name: str) -> bool:
        """Evaluate the online generator of one direction; whether it is its best."""
        found = self._evaluate(self.generator if direction == "AtoB" else self.online.networks["G_B"], direction)
        lines = {f"teacher_{direction}_{key}": value for key, value in found.items()}
        self.run.log("test", self.step, self.place + 1, **lines)
        return self._record(f"teacher_{direction}", found[name])

    def _record(self, who: str, distance: float) -> bool:
        best = self.progress["best"]
        improved = distance < best.get(who, float("inf"))
        if improved:
            best[who] = distance
        return improved

    def _evaluate(self, network: nn.Module, direction: str) -> dict[str, float]:
        distributed.sync_buffers(network)
        return self.judges[direction](network, self.run.autocast())

    # -- coming and going --------------------------------------------------------------------------------------------

    def _take_teacher(self) -> None:
        """The generator and discriminator of another run, or of released files. Errors: CheckpointError, InputError."""
        teacher, (_, judge) = self.config.teacher, self.online.main
        fit_weights(self.best, read_weights(teacher.checkpoint, "teacher"), teacher.checkpoint)
        self.run.require_same("teacher", checkpoint.file_sha256(teacher.checkpoint))
        self.generator.load_state_dict(self.best.state_dict())
        if self.config.student_gan_weight or teacher.discriminator:
            path, key = (teacher.discriminator, None) if teacher.discriminator else (teacher.checkpoint, judge)
            fit_weights(self.discriminator, read_weights(path, key), path)

    def _save(self, improved: bool) -> None:
        """`model` is the student's generator and `teacher` the best one, which eval.py and others take by name."""
        content = {"model": self.student.network.state_dict(), "student": self.student.state_dict()}
        content |= {"teacher": self.best.state_dict(), **self.online.state_dict()}
        content |= {"progress": self.progress, "done": self.done}
        self.run.save(self.step, self.place, content, improved)

    def _resume(self) -> None:
        state = self.run.resume()
        if state:
            self.step, self.place, self.done = state["step"], state["epoch"], state["done"]
            self.student.network.load_state_dict(state["model"])
            self.student.load_state_dict(state["student"])
            self.best.load_state_dict(state["teacher"])
            self.online.load_state_dict(state)
            self.progress = state["progress"]


if __name__ == "__main__":
    entry(main)
