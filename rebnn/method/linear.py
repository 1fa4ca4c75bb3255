"""Linear layers and embeddings with binary weights, for BERT (section 3.5): M is in_features, a channel is a row."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebnn.method.binariser import BinaryWeight, binarise

CENTRES = ("none", "row", "tensor")


def mean_of(weight: Tensor, centre: str) -> Tensor | None:
    """The mean of each row or, the same for all rows, of the whole tensor: [C_out, 1]; None for `none`."""
    if centre == "row":
        return weight.mean(1, keepdim=True)
    return weight.mean().expand(len(weight), 1) if centre == "tensor" else None


class _Centred(torch.autograd.Function):
    """w less its mean, a projection: its transpose, which takes the gradient back, is itself."""

    @staticmethod
    def forward(ctx, weight: Tensor, centre: str) -> Tensor:
        ctx.centre = centre
        return weight - mean_of(weight, centre)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad - mean_of(grad, ctx.centre), None


def centred(weight: Tensor, centre: str) -> Tensor:
    """w less the mean of its row, less the mean of the whole tensor, or as it is; [C_out, M]."""
    return weight if centre == "none" else _Centred.apply(weight, centre)


class Centred(BinaryWeight):
    """Binary weights b = sign(w - mean), the mean of the row (BiBERT), of the tensor (BiT), or 0.

    γ, flips and the reconstruction loss are those of w - mean, through which the gradient passes; the scale starts
    from mean|w| of the uncentred row. Errors: ValueError for an unknown name.
    """

    def start_binary(self, binarizer: str, alpha_init: str, centre: str = "none") -> None:
        if centre not in CENTRES:
            raise ValueError(f"centre {centre!r} is not one of {', '.join(CENTRES)}")
        self.centre = centre
        super().start_binary(binarizer, alpha_init)

    def latent(self) -> Tensor:
        return centred(self.weight, self.centre)

    def mean(self) -> Tensor | None:
        return mean_of(self.weight.detach(), self.centre)

    def paper_weight(self) -> Tensor:
        if self.centre != "row":
            return super().paper_weight()
        return binarise(self.weight, self.scaling_factor.abs(), self.gamma, self.mean())


class BinaryLinear(Centred, nn.Linear):
    """Linear layer with ŵ and a real bias; what its input becomes is the caller's (or a subclass's) business."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        binarizer: str = "paper",
        alpha_init: str = "cam",
        centre: str = "none",
    ):
        super().__init__(in_features, out_features, bias)
        self.start_binary(binarizer, alpha_init, centre)

    def forward(self, x: Tensor) -> Tensor:
        """[…, in_features] to […, out_features]."""
        return F.linear(x, self.binary_weight(), self.bias)


class BinaryEmbedding(Centred, nn.Embedding):
    """Embedding with ŵ: a scale for each row of the vocabulary."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        binarizer: str = "paper",
        alpha_init: str = "cam",
        centre: str = "none",
    ):
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.start_binary(binarizer, alpha_init, centre)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 […] to […, embedding_dim]."""
        return F.embedding(ids, self.binary_weight(), self.padding_idx)
