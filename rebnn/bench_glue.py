"""What a step of binary BERT-base costs against the float student's step; a part of bench.py.

`bert_step`: batch 16, 64 word pieces (SST-2's settings), BiBERT's pipeline with ReBNN's scale and γ: the teacher's
forward without gradient, the student's forward and backward on the losses of section 4, BertAdam, γ and oscillation
counts, and the check for finite values. Reference: the same with a student that is the float network itself.
"""

from collections.abc import Callable

from common.cost import compare, interleaved

import torch

from rebnn.glue.bert import Bert, binary_bert, real_bert
from rebnn.glue.config import Config
from rebnn.glue.layers import Form
from rebnn.glue.losses import hidden_direction, relation_loss, soft_cross_entropy
from rebnn.glue.optim import BertAdam, groups
from rebnn.glue.pair import bert_config
from rebnn.method import Balance

BATCH, LENGTH = 16, 64


def bench_bert(rounds: int) -> dict[str, dict]:
    """The row of the training step, with BERT-base's vocabulary and sizes."""
    sizes = bert_config(Config(), 30522, 2)
    teacher = real_bert(sizes).eval().requires_grad_(False)
    ids = torch.randint(1000, 30000, (BATCH, LENGTH))
    batch = ids, torch.zeros_like(ids), torch.ones_like(ids)
    labels = torch.randint(2, (BATCH,))
    student = binary_bert(sizes, Form("bibert"))
    steps = {
        "reference": make_step(real_bert(sizes), teacher, batch, labels),
        "bert_step": make_step(student, teacher, batch, labels, Balance(student)),
    }
    timing = compare(interleaved(steps, rounds, warmup=1), "reference")["bert_step"]
    return {"bert_step": timing.row(workload=f"BERT-base, {LENGTH} word pieces, batch {BATCH}")}


def make_step(
    student: Bert, teacher: Bert, batch: tuple, labels: torch.Tensor, balance: Balance | None = None
) -> Callable[[], None]:
    """A training step, checked for finite values as train_glue.py checks it."""
    student.train()
    parameters = [*student.parameters()]
    optimiser = BertAdam(groups(student, 1e-4, 1e-4, 0.01), 1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            wanted = teacher(*batch)
        found = student(*batch)
        loss = soft_cross_entropy(found.logits, wanted.logits)
        loss = loss + 0.5 * torch.nn.functional.cross_entropy(found.logits, labels)
        loss = loss + hidden_direction(found.hidden, wanted.hidden) + relation_loss(found.relations, wanted.relations)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        torch.isfinite(torch.stack([loss.detach(), norm])).all().item()  # read at every step on the CPU only
        optimiser.step()
        if balance:
            balance.step()

    return step
