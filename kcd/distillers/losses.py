"""The fourteen distillation losses but CRD as pure functions of student and teacher tensors.

Each is computed in float32 at least, autocast or not. Those over several layers take lists of maps and return a list
with one loss for each layer; the student comes first. Teacher tensors are expected without gradient.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Maps = Sequence[Tensor]


def _widen(value):
    """Half-precision tensors, alone or in a list, as float32; everything else as it is."""
    if isinstance(value, (list, tuple)):
        return [_widen(item) for item in value]
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


def full_precision(function: Callable) -> Callable:
    """Run a loss outside autocast on float32 inputs, for sums and differences of squares need the digits."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        first = args[0] if isinstance(args[0], Tensor) else args[0][0]
        with torch.autocast(first.device.type, enabled=False):
            return function(*_widen(args), **{name: _widen(value) for name, value in kwargs.items()})

    return run


def normalise(x: Tensor, dim: int) -> Tensor:
    """x over its L2 norm along dim; a zero vector stays zero and passes no gradient."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return torch.where(norm > 0, x / norm.clamp_min(1e-12), 0.0)


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps [B, C, H, W] at the smaller height and the smaller width, by adaptive average pooling."""
    if a.shape[2:] == b.shape[2:]:
        return a, b
    size = [min(pair) for pair in zip(a.shape[2:], b.shape[2:])]
    return F.adaptive_avg_pool2d(a, size), F.adaptive_avg_pool2d(b, size)


@full_precision
def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened predictions [B, classes] times T^2 (spec. total loss, KD term)."""
    student = F.log_softmax(student_logits / temperature, 1)
    teacher = F.log_softmax(teacher_logits / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


@full_precision
def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """FitNets (Romero et al., 2015): mean squared difference of a regressed map and the teacher's."""
    return F.mse_loss(student, teacher)


def _energy(x: Tensor) -> Tensor:
    """The channel mean of squares of a map [B, C, H, W] as unit vectors [B, HW]."""
    return normalise(x.square().mean(1).flatten(1), 1)


@full_precision
def attention(student: Maps, teacher: Maps) -> list[Tensor]:
    """Attention transfer (Zagoruyko and Komodakis, 2017): mean squared difference of normalised energy maps."""
    pairs = [match_size(s, t) for s, t in zip(student, teacher)]
    return [(_energy(s) - _energy(t)).square().mean() for s, t in pairs]


@full_precision
def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving KD (Tung and Mori, 2019): mean squared difference of row-normalised B x B Gram matrices."""

    def gram(x: Tensor) -> Tensor:
        x = x.flatten(1)
        return normalise(x @ x.T, 1)

    return (gram(student) - gram(teacher)).square().mean()


@full_precision
def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Correlation congruence (Peng et al., 2019): |s - t| of each sample [B, D] against that of the next one.

    The mean over the B - 1 neighbours of the inner product; 0 for a batch of one.
    """
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


@full_precision
def vid(mean: Maps, teacher: Maps, log_scale: Sequence[Tensor]) -> list[Tensor]:
    """Variational information distillation (Ahn et al., 2019): Gaussian negative log-likelihood of the teacher.

    mean, teacher: [B, C, H, W] of equal shape. log_scale: [C] for each layer; variance = softplus + 1e-5.
    """
    losses = []
    for predicted, target, rho in zip(mean, teacher, log_scale):
        variance = (F.softplus(rho) + 1e-5).view(1, -1, 1, 1)
        losses.append(0.5 * ((predicted - target).square() / variance + variance.log()).mean())
    return losses


@full_precision
def rkd(student: Tensor, teacher: Tensor, distance_weight: float = 25.0, angle_weight: float = 50.0) -> Tensor:
    """Relational KD (Park et al., 2019) of vectors [B, D]: smooth-L1 of normalised distances and of angles."""

    def relations(x: Tensor) -> tuple[Tensor, Tensor]:
        difference = x[None] - x[:, None]  # [B, B, D]
        distance = difference.square().sum(2).clamp_min(1e-12).sqrt()
        distance = distance * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
        # Every entry off the diagonal is at least 1e-6, so these are the positive ones.
        mean = distance.sum() / max(len(x) * (len(x) - 1), 1)
        direction = normalise(difference, 2)
        return distance / mean.clamp_min(1e-12), direction @ direction.transpose(1, 2)

    student_distance, student_angle = relations(student)
    with torch.no_grad():
        teacher_distance, teacher_angle = relations(teacher)
    distance = F.smooth_l1_loss(student_distance, teacher_distance)
    return distance_weight * distance + angle_weight * F.smooth_l1_loss(student_angle, teacher_angle)


@full_precision
def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Probabilistic transfer (Passalis and Tefas, 2018): divergence of the samples' similarity distributions [B, D]."""

    def probabilities(x: Tensor) -> Tensor:
        x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + eps)
        # Rounding may carry a cosine below -1, where the logarithm would fail.
        similar = ((x @ x.T + 1) / 2).clamp_min(0)
        return similar / similar.sum(1, keepdim=True)

    p, q = probabilities(teacher), probabilities(student)
    return (p * ((p + eps) / (q + eps)).log()).mean()


@full_precision
def abound(student: Maps, teacher: Maps, margin: float = 1.0) -> list[Tensor]:
    """Activation boundaries (Heo et al., 2019): squared hinge on pre-activations towards the teacher's sign.

    Layer i of n weighs 2^(i - n + 1); a sum over positions, a mean over the batch, times 3 / 1000.
    """
    losses = []
    for i, (s, t) in enumerate(zip(student, teacher)):
        miss = torch.where(t > 0, margin - s, margin + s)
        losses.append(F.relu(miss).square().sum() * (2.0 ** (i - len(student) + 1) / len(s) * 3 / 1000))
    return losses


@full_precision
def factor(student: Tensor, teacher: Tensor) -> Tensor:
    """Factor transfer (Kim et al., 2018): mean absolute difference of the factors' normalised energy maps."""
    student, teacher = match_size(student, teacher)
    return (_energy(student) - _energy(teacher)).abs().mean()


def _flow(maps: Maps) -> list[Tensor]:
    """For consecutive maps [B, C, H, W], [B, C', H', W']: mean product over positions, [B, C, C']."""
    pairs = [match_size(a, b) for a, b in itertools.pairwise(maps)]
    return [a.flatten(2) @ b.flatten(2).transpose(1, 2) / a[0, 0].numel() for a, b in pairs]


@full_precision
def fsp(student: Maps, teacher: Maps) -> list[Tensor]:
    """Flow of solution procedure (Yim et al., 2017): mean squared difference of flow matrices, one per pair of maps."""
    return [F.mse_loss(s, t) for s, t in zip(_flow(student), _flow(teacher))]


@full_precision
def nst(student: Maps, teacher: Maps) -> list[Tensor]:
    """Neuron selectivity transfer (Huang and Wang, 2017): MMD with the kernel <a, b>^2 on unit channel maps."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.transpose(1, 2)).square().mean()

    losses = []
    for pair in zip(student, teacher):
        s, t = (normalise(x.flatten(2), 2) for x in match_size(*pair))
        losses.append(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t))
    return losses


def _positions(x: Tensor) -> Tensor:
    """A map [B, C, H, W] as matrices [B, HW, C]; what is not finite becomes 0, because the SVD refuses it."""
    return x.flatten(2).transpose(1, 2).nan_to_num(0.0, 0.0, 0.0)


@torch.no_grad()
def leading_direction(teacher: Tensor) -> Tensor:
    """First right singular vector [B, C] of each map [B, C, H, W]; zero for a zero map.

    An SVD leaves the sign open, and KDSVD's loss depends on it: here the entry of largest magnitude is positive.
    """
    _, values, right = torch.linalg.svd(_positions(teacher), full_matrices=False)
    vector = right[:, 0]
    peak = vector.gather(1, vector.abs().argmax(1, keepdim=True))
    return vector * peak.sign() * (values[:, :1] > 0)


def aligned_direction(student: Tensor, direction: Tensor, candidates: int = 4) -> Tensor:
    """Of each map's first right singular vectors the one nearest to a direction [B, C] up to sign, turned to it.

    student: [B, C, H, W]. Its gradient is first-order perturbation theory of the eigenvectors of X^T X, written out
    because the library's SVD gives NaN as soon as two of the unused singular values agree, as in dead channels.
    """
    x = _positions(student)
    with torch.no_grad():
        _, values, right = torch.linalg.svd(x, full_matrices=False)  # [B, R], [B, R, C]
        cosine = (right[:, :candidates] @ direction[:, :, None])[:, :, 0]
        chosen = cosine.abs().argmax(1, keepdim=True)
        vector = right.gather(1, chosen[:, :, None].expand(-1, -1, right.shape[2]))[:, 0]
        value = values.gather(1, chosen)
        smallest = torch.finfo(x.dtype).eps * values[:, :1].square()
        gap = (value - values) * (value + values)
        within = torch.where(gap.abs() > smallest, 1 / gap, 0.0)  # 0 for the vector itself
        outside = torch.where(value.square() > smallest, 1 / value.square(), 0.0)
    image = ((x @ vector[:, :, None]).transpose(1, 2) @ x)[:, 0]  # X^T X v, [B, C]
    coordinates = (right @ image[:, :, None])[:, :, 0]
    inside = (right.transpose(1, 2) @ (within * coordinates)[:, :, None])[:, :, 0]
    rest = image - (right.transpose(1, 2) @ coordinates[:, :, None])[:, :, 0]
    turn = inside + outside * rest
    return cosine.gather(1, chosen).sign() * (vector + turn - turn.detach())


@full_precision
def singular_relations(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
    """Squared difference of the relations exp(-(v_c - v'_c')^2 / 8) between consecutive layers' vectors [B, C]."""

    def relation(vector: Tensor, previous: Tensor) -> Tensor:
        return torch.exp(-(vector[:, :, None] - previous[:, None, :]).square() / 8)

    losses = []
    for i in range(1, len(student)):
        terms = (relation(student[i], student[i - 1]) - relation(teacher[i], teacher[i - 1])).square()
        losses.append(torch.where(terms.isfinite(), terms, 0.0).sum() / len(terms))
    return losses


@full_precision
def kdsvd(student: Maps, teacher: Maps) -> list[Tensor]:
    """Distillation by singular vectors (Lee et al., 2018), one loss for each layer from the second on."""
    targets = [leading_direction(t) for t in teacher]
    return singular_relations([aligned_direction(s, t) for s, t in zip(student, targets)], targets)
