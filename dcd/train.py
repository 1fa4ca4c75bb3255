"""Discriminator-cooperated distillation: teachers trained from scratch, and a student that follows them.

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

from dcd import data, models
from dcd.cityscapes import segmentation
from dcd.config import Config
from dcd.method import tapped
from dcd.student import Student

__all__ = ["Config", "build", "main"]

STAGES = ("teacher", "distil")


def main(argv: list[str]) -> Path:
    """Run one experiment; returns the run folder. Stage `teacher`, which trains no student, runs only by name."""
    config, command, name = parse(Config, argv, __doc__, STAGES)
    train, test = data.load(config)
    about = describe(config.data, train)
    for stage in stages_to_run(command, "dcd", STAGES):
        if stage == "teacher" and command.stage == "all":
            continue
        with Run("dcd", config, command, name, stage, about) as run:
            Experiment(run, config, train, test, only_teacher=stage == "teacher").fit()
    return run_folder(command, name)


def build(config: Config) -> dict[str, nn.Module]:
    """All networks that a run trains, with fresh weights; the student's do not depend on how it is distilled."""
    networks = models.build_teachers(config)
    return networks | {"student": models.build_student(config), "connectors": models.build_distiller(config)}


class Experiment:
    """The networks of one run and where it stands: a flat list of epochs, the place in it, and the steps done there.

    supervisor: the generator that teaches. In CycleGAN it is the best so far, as judged at evaluations, while its
    latest form is trained on; in pix2pix it is the latest itself.
    """

    def __init__(self, run: Run, config: Config, train, test, only_teacher: bool):
        self.run, self.config, self.train, self.test = run, config, train, test
        networks = {name: network.to(run.device) for name, network in build(config).items()}
        student, connectors = networks.pop("student"), networks.pop("connectors")
        self.teacher = TEACHERS[config.model](networks, config.teaching, config.optim, autocast=run.autocast)
        self.generator, self.discriminator = (networks[name] for name in self.teacher.main)
        self.best = models.generator_of(config.networks, config.networks.teacher_width).to(run.device)
        self.best.load_state_dict(self.generator.state_dict())
        given = config.teacher.checkpoint and not only_teacher
        if given:
            self._load_teacher()
        vgg = random_vgg() if config.perceptual.network == "random" else vgg16(config.perceptual.weights)
        self.student = Student(config, student, connectors, vgg.to(run.device), run.autocast)
        part = "teacher" if only_teacher else "student" if given else "all"
        self.plan = plan(config.model, config.optim, config.judging.every_epochs, part)
        self.judges = {"AtoB": Judge(config.judging, test, run.device)}
        self.miou = segmentation(config, test, run.device)
        if config.model == "cyclegan" and part != "student":
            self.judges["BtoA"] = Judge(config.judging, turned(test), run.device, released=False)
        self.place, self.step, self.done = 0, 0, 0
        self.progress = {"teacher_steps": 0, "student_steps": 0, "best": {}}

    # -- the algorithm -----------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Epoch after epoch of the plan: teachers, students or both, judged where the plan says so."""
        run, config = self.run, self.config
        self._resume()
        while self.place < len(self.plan):
            now = self.plan[self.place]
            for optimiser in (self.teacher.generators, self.teacher.discriminators, self.student.optimiser):
                set_rate(optimiser, config.optim.lr * now.factor)
            order = epoch_order(config.seed, self.place + 1, torch.arange(len(self.train)))
            total = -(-len(order) // config.data.batch_size)
            steps = batches(
                self.train,
                order,
                self.place + 1,
                config.data,
                run.device,
                start=self.done,
                micro_batches=run.runtime.micro_batches,
            )
            text = f"{now.kind} {now.number}, {self.place + 1}/{len(self.plan)}"
            for micro_batches in run.progress(steps, total - self.done, text):
                self.step, self.done = self.step + 1, self.done + 1
                terms = self._train_step(now, micro_batches)
                if self.step % run.runtime.log_every == 0:
                    run.log(now.kind, self.step, self.place + 1, lr=config.optim.lr * now.factor, **terms)
                self._after_step(now)
            improved = self._judge(now.kind) if now.judged else False
            if now.judged and distributed.is_main():
                shown = [self._supervisor() if now.kind == "student" else self.generator]
                shown += [] if now.kind == "teacher" else [self.student.network]
                draw_samples(run.sample(f"{self.place + 1:04d}.png"), self.test, shown, run.device)
            self.place, self.done = self.place + 1, 0
            self._save(improved)

    def _train_step(self, now: Epoch, micro_batches: list) -> dict[str, torch.Tensor]:
        """One step of the kind that the epoch is of; `check` notes what is not finite before a weight is touched."""
        check = partial(self.run.watch, self.step)
        sources = [batch.images for batch in micro_batches]
        if now.kind == "student":
            with torch.no_grad():
                answers = self._answers(self._supervisor(), sources)
            self.progress["student_steps"] += 1
            return self.student.step(micro_batches, answers, self.discriminator, check)
        self.progress["teacher_steps"] += 1
        if self.config.model == "cyclegan":
            return self.teacher.step(micro_batches, check)
        # pix2pix: the teacher's images come from before its step, the discriminator's judgement from after it.
        learns = now.kind == "teacher" or self.step % self.config.optim.student_share == 0
        with torch.set_grad_enabled(learns):
            answers = self._answers(self.generator, sources)
        terms = self.teacher.step(micro_batches, [image for image, _ in answers], check) if learns else {}
        if now.kind == "both":
            self.progress["student_steps"] += 1
            answers = [(image.detach(), [maps.detach() for maps in features]) for image, features in answers]
            terms |= self.student.step(micro_batches, answers, self.discriminator, check)
        return terms

    def _answers(self, generator: nn.Module, sources: list[torch.Tensor]) -> list:
        """The teacher's image and compared features for each micro-batch."""
        with self.run.autocast():
            return [tapped(generator, self.student.layers, source) for source in sources]

    def _supervisor(self) -> nn.Module:
        """Who teaches in a student epoch of its own: the best generator, or the one that was given."""
        return self.best.eval() if self.config.networks.norm == "batch" else self.best

    def _after_step(self, now: Epoch) -> None:
        """Evaluations and checkpoints inside an epoch, and the end of a run that was told to stop."""
        every, improved = self.config.judging.every_steps, False
        count = self.progress["student_steps" if now.kind == "student" else "teacher_steps"]
        if every and count % every == 0:
            improved = self._judge(now.kind)
        stop = self.run.should_stop(self.step)
        if stop or improved or self.run.should_save(self.step):
            self._save(improved)
        if stop:
            self.run.leave()

    # -- judging -----------------------------------------------------------------------------------------------------

    def _judge(self, kind: str) -> bool:
        """Evaluate what has just been trained, keep the best teacher; whether the student is better than ever."""
        run, name, better = self.run, self.judges["AtoB"].name, []
        if kind != "student":
            for direction in self.judges:
                generator = self.generator if direction == "AtoB" else self.teacher.networks["G_B"]
                found = self._evaluate(generator, direction)
                run.log("test", self.step, self.place + 1, **{f"teacher_{direction}_{k}": v for k, v in found.items()})
                if self._improved(f"teacher_{direction}", found):
                    better.append(direction)
            if "AtoB" in better or (better and self.config.teacher.legacy_best):
                self.best.load_state_dict(self.generator.state_dict())
        if kind == "teacher":
            return False
        found = self._evaluate(self.student.network, "AtoB")
        run.log("test", self.step, self.place + 1, seconds=run.elapsed(), **found)
        run.say(f"epoch {self.place + 1}/{len(self.plan)}: student {name} {found[name]:.3f}")
        return self._improved("student", found)

    def _evaluate(self, network: nn.Module, direction: str) -> dict[str, float]:
        distributed.sync_buffers(network)
        found = self.judges[direction](network, self.run.autocast())
        return found | {"miou": self.miou(network)} if self.miou and direction == "AtoB" else found

    def _improved(self, who: str, found: dict[str, float]) -> bool:
        """Whether the distance or, where it is measured, the mIoU is better than ever (section 6); notes what is."""
        best, improved = self.progress["best"], False
        for key, value, sign in ((who, found[self.judges["AtoB"].name], 1), (f"{who}_miou", found.get("miou"), -1)):
            if value is not None and sign * value < sign * best.get(key, sign * float("inf")):
                best[key], improved = value, True
        return improved

    # -- coming and going --------------------------------------------------------------------------------------------

    def _load_teacher(self) -> None:
        """The generator and discriminator of another run, or of released files. Errors: CheckpointError, InputError."""
        teacher, main = self.config.teacher, self.teacher.main
        fit_weights(self.best, read_weights(teacher.checkpoint, "teacher"), teacher.checkpoint)
        self.run.require_same("teacher", checkpoint.file_sha256(teacher.checkpoint))
        self.generator.load_state_dict(self.best.state_dict())
        path = teacher.discriminator or teacher.checkpoint
        fit_weights(self.discriminator, read_weights(path, None if teacher.discriminator else main[1]), path)

    def _save(self, improved: bool) -> None:
        """`model` is the student's generator and `teacher` the best one, which eval.py and others take by name."""
        content = {"model": self.student.network.state_dict(), "student": self.student.state_dict()}
        content |= {"teacher": self.best.state_dict(), **self.teacher.state_dict()}
        content |= {"progress": self.progress, "done": self.done}
        self.run.save(self.step, self.place, content, improved)

    def _resume(self) -> None:
        state = self.run.resume()
        if state:
            self.step, self.place, self.done = state["step"], state["epoch"], state["done"]
            self.student.network.load_state_dict(state["model"])
            self.student.load_state_dict(state["student"])
            self.best.load_state_dict(state["teacher"])
            self.teacher.load_state_dict(state)
            self.progress = state["progress"]


if __name__ == "__main__":
    entry(main)
