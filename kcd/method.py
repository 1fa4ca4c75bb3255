"""Knowledge condensation distillation (Li et al., ECCV 2022): OGVE values, VAKS condenses.

A knowledge point is a training image with the teacher's answer. During T epochs each point's value for the current
student is recorded (online global value estimation, the E-step); then the points are ranked once, the least valuable
are removed and blended into the least valuable of those that stay (value-adaptive knowledge summary), and the next T
epochs distil on what is left (the M-step).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # images blended at once
# -- E-step: the value of a knowledge point --------------------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    """H(x) = -Σ_c p log p in nats at temperature 1; logits [B, C] -> [B] (OGVE).

    Through log-softmax, so that a probability that underflows counts 0 where p·log(p) would give NaN.
    """
    log_p = F.log_softmax(logits.float(), 1)
    return -(log_p.exp() * log_p).sum(1)


def margin(logits: Tensor) -> Tensor:
    """1 minus the gap between the two most probable classes; logits [B, C] -> [B]."""
    best = F.softmax(logits.float(), 1).topk(2, dim=1).values
    return 1 - (best[:, 0] - best[:, 1])


# What is recorded of a batch for each criterion: (student logits, teacher logits, labels) -> [B], high = valuable.
# "entropy" is the paper's; the rest are controls.
CRITERIA: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "entropy": lambda student, teacher, labels: entropy(student),
    "lowest": lambda student, teacher, labels: entropy(student),  # ranked the other way round
    "random": lambda student, teacher, labels: entropy(student),  # ranked by a fixed random number
    "loss": lambda student, teacher, labels: F.cross_entropy(student.float(), labels, reduction="none"),
    "margin": lambda student, teacher, labels: margin(student),
    "teacher_entropy": lambda student, teacher, labels: entropy(teacher),
}


def score(total: Tensor, visits: Tensor, alpha: float, reference_visits: int = 40) -> Tensor:
    """V(x) = (F/40)^α · (sum of recorded values / F), F = number of visits: the cost-aware value, float64 [N].

    Points never visited get -inf. `reference_visits` is a common factor and does not alter the order.
    """
    mean = total / visits.clamp(min=1)
    value = (visits / reference_visits).pow(alpha) * mean
    return torch.where(visits > 0, value, -torch.inf)


def rank(value: Tensor) -> Tensor:
    """Positions [N] by descending value; ties by lower position, points never visited last."""
    return torch.sort(value, descending=True, stable=True).indices


def balanced(order: Tensor, labels: Tensor) -> Tensor:
    """The order in which every class advances at the same relative pace (class-balance option; not in the paper).

    order: [N] positions, best first; labels: [N]. A point's place is its rank inside its class over the class's size.
    """
    classes = labels[order]
    by_class = torch.argsort(classes, stable=True)
    sizes = torch.bincount(classes)
    first = sizes.cumsum(0) - sizes
    within = torch.arange(len(order), device=order.device) - first[classes[by_class]]
    place = torch.empty_like(order, dtype=torch.float64)
    place[by_class] = within.double() / sizes[classes[by_class]]
    return order[torch.argsort(place, stable=True)]


# -- M-step: which points stay, and what becomes of the others -------------------------------------------------------


def kept_size(n: int, kept: int, tau: float, stages: int = 6) -> int:
    """How many of n points stay at the next condensation; τ is reached after `stages` of them.

    The Python float arithmetic is the official code's and decides individual sizes.
    """
    step, floor = int(n * (1 - tau) / stages), int(tau * n)
    return floor if kept - step < floor else kept - step


def mix(kept: Tensor, lost: Tensor, mix_min: float = 0.7) -> Tensor:
    """Blend the i-th of L lost images into the i-th partner: uint8 [L, ...] of trunc(r_i·kept + (1 − r_i)·lost).

    r_i = mix_min + (1 − mix_min)·(L − i)/L falls from 1, so the perturbation grows as the value falls. All in float32,
    in this order: other orders flip single pixels. Blocks keep the float temporaries inside the processor's cache.
    """
    count = len(kept)
    q = torch.arange(count, 0, -1, dtype=torch.float32, device=kept.device) / count
    rate = ((1 - mix_min) * q + mix_min).view(-1, *[1] * (kept.ndim - 1))
    blended = torch.empty_like(kept)
    for r, a, b, out in zip(*(t.split(BLOCK) for t in (rate, kept, lost, blended))):
        # Through int16, since torch has no fast kernel from float to uint8; both truncate.
        out.copy_((r * a.float()).add_((1 - r) * b.float()).to(torch.int16))
    return blended


class Condenser:
    """The knowledge set: the record of values (OGVE), the points that are kept, and how they came to be (VAKS).

    n: number of knowledge points. Memory: 41 bytes a point (running sums and counts, what the current epoch adds, the
    kept positions, a flag), instead of the n x epochs matrix of the release. Images are changed in place by `condense`;
    the history of blends is what `state_dict` holds, and `replay` repeats it on fresh images.
    """

    def __init__(
        self,
        n: int,
        *,
        version: str = "remove+summary",
        criterion: str = "entropy",
        tau: float = 0.7,
        interval: int = 40,
        stages: int = 6,
        warmup: int = 0,
        alpha: float = 0.03,
        mix_min: float = 0.7,
        record_scope: str = "run",
        at_last_epoch: bool = False,
        balance: Tensor | None = None,
        random: Tensor | None = None,
        device: torch.device | str = "cpu",
    ):
        if criterion == "random" and random is None:
            raise ValueError("the criterion random ranks by the numbers given as `random`, [n]")
        self.n, self.version, self.criterion = n, version, criterion
        self.tau, self.interval, self.stages, self.warmup = tau, interval, stages, warmup
        self.alpha, self.mix_min, self.record_scope = alpha, mix_min, record_scope
        self.at_last_epoch, self.balance, self.random = at_last_epoch, balance, random
        self.kept = torch.arange(n, device=device)
        self.total = torch.zeros(n, dtype=torch.float64, device=device)
        self.visits = torch.zeros(n, dtype=torch.int64, device=device)
        self.pending = torch.zeros(2, n, dtype=torch.float64, device=device)
        self.history: list[tuple[Tensor, Tensor]] = []  # (partners, lost) of every blend
        self.removed = torch.zeros(n, dtype=torch.bool, device=device)  # ever removed
        self.reentries = 0

    def record(self, index: Tensor, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """Note what a batch's logits [B, C] say of the points [B]; nothing leaves the device."""
        if self.version != "none":
            self.note(index, CRITERIA[self.criterion](student.detach(), teacher, labels))

    def note(self, index: Tensor, value: Tensor) -> None:
        """Note values [B] of the points [B]; a point occurs at most once a call."""
        value = value.double()
        self.pending[0].index_add_(0, index, value)
        self.pending[1].index_add_(0, index, torch.ones_like(value))

    def merge(self, reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        """Add what has been recorded since the last call to the record; `reduce` sums over processes."""
        reduce(self.pending)
        self.total += self.pending[0]
        self.visits += self.pending[1].long()
        self.pending.zero_()

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether the knowledge is condensed after this epoch (1-based): every T epochs from the warm-up's end on.

        Warm-up only postpones condensing; values are recorded from the first epoch. After the last epoch there is
        nothing left to train, so condensing then is a switch.
        """
        on_time = epoch % self.interval == 0 and epoch >= self.warmup
        return self.version != "none" and on_time and (epoch < epochs or self.at_last_epoch)

    def ranking(self) -> Tensor:
        """All n positions, also the removed ones, by descending value."""
        value = score(self.total, self.visits, self.alpha)
        if self.criterion == "lowest":
            value = torch.where(self.visits > 0, -value, -torch.inf)
        elif self.criterion == "random":
            value = self.random
        order = rank(value)
        return order if self.balance is None else balanced(order, self.balance)

    def condense(self, images: Tensor | None = None) -> dict[str, Tensor]:
        """Rank, keep the best, blend the lost into their partners; returns kept, lost and how many re-entered.

        images: uint8 [n, H, W, C], written to in place where the version summarises; None leaves the blending to the
        reader of the history (images that are decoded when needed). A removed point re-enters when it ranks high
        enough again. Where nothing is lost, the summary does nothing; where it does something in place, `blends` holds
        its 16 strongest blends for a picture: kept image, lost image, blend, uint8 [3, 16, H, W, C].
        """
        order, previous = self.ranking(), len(self.kept)
        size = kept_size(self.n, previous, self.tau, self.stages)
        kept, lost = order[:size], order[size:previous]
        change = {"kept": kept, "lost": lost}
        if self.version == "remove+summary" and len(lost):
            partners = kept[-len(lost) :]  # fewer than the lost if more is lost than stays: the last lost are dropped
            self.history.append((partners, lost[: len(partners)]))
            if images is not None:
                change["blends"] = self._blend(images, *self.history[-1])
        change["reentered"] = self.removed[kept].sum()
        self.removed.fill_(True)
        self.removed[kept] = False
        self.reentries = self.reentries + change["reentered"]
        self.kept = kept
        if self.record_scope == "stage":
            self.total.zero_()
            self.visits.zero_()
        return change

    def replay(self, images: Tensor) -> None:
        """Repeat all blends on unchanged images, bit for bit."""
        for partners, lost in self.history:
            self._blend(images, partners, lost)

    def _blend(self, images: Tensor, partners: Tensor, lost: Tensor) -> Tensor:
        """Write the blends in place; the images may lie on another device than the record."""
        partners, lost = partners.to(images.device), lost.to(images.device)
        before, gone = images[partners], images[lost]
        images[partners] = after = mix(before, gone, self.mix_min)
        return torch.stack([part[-16:] for part in (before, gone, after)])

    def state_dict(self) -> dict:
        """Everything that a resumed run needs, as plain tensors; call `merge` before."""
        return {
            "kept": self.kept,
            "total": self.total,
            "visits": self.visits,
            "removed": self.removed,
            "reentries": torch.as_tensor(self.reentries),
            "history": [[partners, lost] for partners, lost in self.history],
        }

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`; images are brought up to date by `replay`."""
        device = self.total.device
        for name in ("kept", "total", "visits", "removed", "reentries"):
            setattr(self, name, state[name].to(device))
        self.history = [(partners.to(device), lost.to(device)) for partners, lost in state["history"]]


def sample_visits(n: int, tau: float, interval: int, epochs: int, stages: int = 6) -> float:
    """The share of n·epochs visits that remains, Σ|kept| / (n·epochs), known before the run."""
    kept, visits = n, 0
    for epoch in range(1, epochs + 1):
        visits += kept
        if epoch % interval == 0:
            kept = kept_size(n, kept, tau, stages)
    return visits / (n * epochs)


def learning_rate(base: float, epoch: int, decay_epochs: tuple[int, ...], decay: float = 0.1) -> float:
    """The step schedule: times `decay` for each of `decay_epochs` that lies before the epoch (1-based)."""
    return base * math.pow(decay, sum(epoch > e for e in decay_epochs))
