"""One module for each distiller, all with the interface of base.py, so that the training loop names none of them."""

from common.errors import InputError

import torch
from torch import Tensor, nn

from kcd.distillers import losses
from kcd.distillers.adaptors import Connector, ConvReg, Embed, LinearEmbed, Paraphraser, Translator, VidHead
from kcd.distillers.base import Distiller, Features, Options, Shapes, need_equal_channels, need_maps
from kcd.distillers.crd import Contrast, ContrastSampler

MIDDLE, LAST_MAP, ALL_MAPS = slice(1, -1), slice(-2, -1), slice(0, -1)


class KD(Distiller):
    """Plain knowledge distillation: all of it is the KD term that every total loss contains."""


class Hint(Distiller):
    """FitNets: the student's map of one layer, regressed to the teacher's."""

    WEIGHTS = (1.0, 0.0, 100.0)
    main_loss = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        self.layer = options.hint_layer
        if not 0 <= self.layer < min(len(student), len(teacher)):
            raise InputError(
                f"hint_layer={self.layer} does not exist: the student has {len(student)} features, the teacher "
                f"{len(teacher)}; choose a layer from 0 to {min(len(student), len(teacher)) - 1}"
            )
        self.regressor = ConvReg(student[self.layer], teacher[self.layer])

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        return [losses.hint(self.regressor(student[self.layer]), teacher[self.layer])]

    def main_modules(self) -> list[nn.Module]:
        return [self.regressor]


class Attention(Distiller):
    """AT on every stage."""

    WEIGHTS = (1.0, 0.0, 1000.0)
    main_loss = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        need_maps("attention", student, teacher, MIDDLE)

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        return losses.attention(student[MIDDLE], teacher[MIDDLE])


class Similarity(Distiller):
    """SP on the last map."""

    WEIGHTS = (1.0, 0.0, 3000.0)
    main_loss = True

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        return [losses.similarity(student[-2], teacher[-2])]


class Correlation(Distiller):
    """CC on linear embeddings of the pooled vectors."""

    WEIGHTS = (1.0, 0.0, 0.02)
    main_loss = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        self.embed_s = LinearEmbed(student[-1][0], options.embed_dim)
        self.embed_t = LinearEmbed(teacher[-1][0], options.embed_dim)

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        return [losses.correlation(self.embed_s(student[-1]), self.embed_t(teacher[-1]))]

    def main_modules(self) -> list[nn.Module]:
        return [self.embed_s, self.embed_t]


class VID(Distiller):
    """VID on every stage, one head each."""

    WEIGHTS = (1.0, 0.0, 1.0)
    main_loss = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        pairs = zip(*need_maps("vid", student, teacher, MIDDLE))
        self.heads = nn.ModuleList(VidHead(s[0], t[0]) for s, t in pairs)

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        pairs = [losses.match_size(s, t) for s, t in zip(student[MIDDLE], teacher[MIDDLE])]
        means = [head(s) for head, (s, _) in zip(self.heads, pairs)]
        return losses.vid(means, [t for _, t in pairs], [head.log_scale for head in self.heads])

    def main_modules(self) -> list[nn.Module]:
        return [self.heads]


class RKD(Distiller):
    """RKD on the pooled vectors."""

    WEIGHTS = (1.0, 0.0, 1.0)
    main_loss = True

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        return [losses.rkd(student[-1], teacher[-1])]


class PKT(Distiller):
    """PKT on the pooled vectors."""

    WEIGHTS = (1.0, 0.0, 30000.0)
    main_loss = True

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        return [losses.pkt(student[-1], teacher[-1])]


class ABound(Distiller):
    """AB: connector and student's stages learn the teacher's activation boundaries before the main loop."""

    WEIGHTS = (1.0, 0.0, 1.0)
    preact = True
    init_stage = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        self.connector = Connector(*need_maps("abound", student, teacher, MIDDLE))

    def init_loss(self, student: Features, teacher: Features) -> Tensor:
        """student, teacher: features with f1 ... f(k-1) before the ReLU. 0-dim sum over layers."""
        return sum(losses.abound(self.connector(student[MIDDLE]), [t.detach() for t in teacher[MIDDLE]]))

    def init_modules(self, student: nn.Module) -> list[nn.Module]:
        return super().init_modules(student) + list(student.feature_modules())

    def frozen_modules(self) -> list[nn.Module]:
        return [self.connector]


class Factor(Distiller):
    """FT: the paraphraser learns to reconstruct the teacher's last map, then the student imitates its factor."""

    WEIGHTS = (1.0, 0.0, 200.0)
    init_stage = True
    main_loss = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        (student_map,), (teacher_map,) = need_maps("factor", student, teacher, LAST_MAP)
        self.translator = Translator(student_map[0], teacher_map[0])
        self.paraphraser = Paraphraser(teacher_map[0])

    def init_loss(self, student: Features, teacher: Features) -> Tensor:
        """teacher: features; the mean squared error of its last map's reconstruction, 0-dim."""
        target = teacher[-2].detach()
        return losses.hint(self.paraphraser(target)[1], target)

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        with torch.no_grad():
            target = self.paraphraser(teacher[-2])[0]
        return [losses.factor(self.translator(student[-2]), target)]

    def main_modules(self) -> list[nn.Module]:
        return [self.translator]

    def frozen_modules(self) -> list[nn.Module]:
        return [self.paraphraser]


class FSP(Distiller):
    """FSP: the student's stages learn the teacher's flow matrices before the main loop."""

    WEIGHTS = (1.0, 0.0, 50.0)
    init_stage = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        need_equal_channels("fsp", *need_maps("fsp", student, teacher, ALL_MAPS))

    def init_loss(self, student: Features, teacher: Features) -> Tensor:
        """student, teacher: features. 0-dim sum over consecutive maps."""
        return sum(losses.fsp(student[ALL_MAPS], [t.detach() for t in teacher[ALL_MAPS]]))

    def init_modules(self, student: nn.Module) -> list[nn.Module]:
        return list(student.feature_modules())


class NST(Distiller):
    """NST on every stage."""

    WEIGHTS = (1.0, 0.0, 50.0)
    main_loss = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        need_maps("nst", student, teacher, MIDDLE)

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        return losses.nst(student[MIDDLE], teacher[MIDDLE])


class KDSVD(Distiller):
    """KDSVD on every stage; no source gives its beta."""

    WEIGHTS = (1.0, 0.0, None)
    main_loss = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        student, teacher = need_maps("kdsvd", student, teacher, MIDDLE)
        need_equal_channels("kdsvd", student, teacher)
        if len(student) < 2:
            raise InputError("kdsvd relates consecutive stages but the networks have one; choose deeper networks")
        for channels, height, width in student:
            if channels < 4 or height * width < 4:
                raise InputError(
                    f"kdsvd takes 4 singular vectors of each of the student's maps but one is "
                    f"{channels}x{height}x{width}; it needs at least 4 channels and 4 positions"
                )

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        return losses.kdsvd(student[MIDDLE], teacher[MIDDLE])


class CRD(Distiller):
    """CRD on unit embeddings of the pooled vectors, with memories over all samples."""

    WEIGHTS = (1.0, 0.0, 0.8)
    main_loss = True

    def __init__(self, student: Shapes, teacher: Shapes, options: Options):
        super().__init__(student, teacher, options)
        if options.labels is None or len(options.labels) != options.n_data:
            given = "none" if options.labels is None else str(len(options.labels))
            raise InputError(
                f"crd draws negatives by class and needs a label for each of the {options.n_data} training samples but "
                f"was given {given}; pass labels=[n_data] to build"
            )
        self.embed_s = Embed(student[-1][0], options.embed_dim)
        self.embed_t = Embed(teacher[-1][0], options.embed_dim)
        self.sampler = ContrastSampler(
            options.labels, options.n_classes, options.negatives, options.positives, options.seed
        )
        self.contrast = Contrast(options.n_data, options.embed_dim, options.temperature, options.momentum, options.seed)

    def layer_losses(self, student: Features, teacher: Features, index: Tensor) -> list[Tensor]:
        embeddings = self.embed_s(student[-1]), self.embed_t(teacher[-1])
        return [self.contrast(*embeddings, index, self.sampler(index))]

    def main_modules(self) -> list[nn.Module]:
        return [self.embed_s, self.embed_t]

    def set_epoch(self, epoch: int) -> None:
        """Every epoch draws other negatives."""
        self.sampler.epoch = epoch


DISTILLERS: dict[str, type[Distiller]] = {
    "kd": KD,
    "hint": Hint,
    "attention": Attention,
    "similarity": Similarity,
    "correlation": Correlation,
    "vid": VID,
    "rkd": RKD,
    "pkt": PKT,
    "abound": ABound,
    "factor": Factor,
    "fsp": FSP,
    "nst": NST,
    "kdsvd": KDSVD,
    "crd": CRD,
}


def find(name: str) -> type[Distiller]:
    if name not in DISTILLERS:
        raise InputError(f"distiller {name!r} is unknown; choose one of {', '.join(DISTILLERS)}")
    return DISTILLERS[name]


def build(
    name: str, student_shapes: Shapes, teacher_shapes: Shapes, *, n_data: int, n_classes: int, seed: int, **options
) -> Distiller:
    """A distiller for features of these shapes, in train mode.

    Shapes: for f0 ... fk of each network (C, H, W), the last (C,), of one sample. `options`: the other fields of
    `Options`. Raises InputError for an unknown name and for networks that the method cannot join.
    """
    for who, shapes in (("student", student_shapes), ("teacher", teacher_shapes)):
        if len(shapes) < 2 or len(shapes[-1]) != 1:
            raise InputError(
                f"the {who}'s features {[tuple(s) for s in shapes]} do not end in maps and a pooled vector (C,); "
                "give the shapes of f0 ... fk without the batch"
            )
    options = Options(n_data=n_data, n_classes=n_classes, seed=seed, **options)
    return find(name)(student_shapes, teacher_shapes, options).train()


def loss_weights(
    name: str, gamma: float | None = None, alpha: float | None = None, beta: float | None = None
) -> tuple[float, float, float]:
    """(gamma, alpha, beta) of a distiller with those given in place of the defaults.

    Raises InputError where there is neither (beta of kdsvd).
    """
    given = (gamma, alpha, beta)
    weights = tuple(default if value is None else value for value, default in zip(given, find(name).WEIGHTS))
    if None in weights:
        raise InputError(f"{name} has no published weight for its loss; give beta")
    return weights
