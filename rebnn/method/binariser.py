"""From latent weights w to the weights that a convolution uses, ŵ = α·sign(w), and back (sections 2.1, 2.2, 2.5, 2.6).

Notation: i an output channel, M its number of weights, b = sign(w), G = ∂L/∂ŵ. Scales α and parameters γ have one value
for each output channel, in the shape [C_out, 1, …] that broadcasts against w.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebnn.method.activations import RSign

LEVEL = 0.02  # q, the binary level of the released code, where α = q·|s|
GAMMA_LOW, GAMMA_HIGH = 1e-5, 2e-4  # the bounds of the released code's clamp
BINARIZERS = ("paper", "released", "reactnet", "bidet")
WITHOUT_SCALE = ("reactnet", "bidet")  # those whose scale is mean|w| and no parameter
ALPHA_INITS = ("cam", "randn")
BLOCK = 1 << 17  # weights whose temporaries stay in a core's cache


def block_rows(weight: Tensor) -> int:
    """How many channels of a weight are worked on at once: all, or on a CPU those whose temporaries fit its cache."""
    return max(1, BLOCK // weight[0].numel()) if weight.device.type == "cpu" else len(weight)


class _Paper(torch.autograd.Function):
    """Equations 3.144, 3.151 and 3.152 (with the minus and the sum that the printed form lacks)."""

    @staticmethod
    def forward(ctx, weight: Tensor, alpha: Tensor, gamma: Tensor | None, mean: Tensor | None) -> Tensor:
        used = weight.sign() if mean is None else (weight - mean).sign_()
        used.mul_(alpha)
        ctx.save_for_backward(weight, used, alpha, gamma, mean)  # the convolution keeps ŵ anyway
        return used

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, used, alpha, gamma, mean = ctx.saved_tensors
        grad_weight, grad_alpha = torch.empty_like(weight), torch.empty_like(alpha)
        # On a CPU this takes a third of the time that the whole weight at once does.
        rows = block_rows(weight)
        parts = (t.split(rows) for t in (grad, weight, used, alpha, grad_weight, grad_alpha))
        absent = [None] * -(-len(weight) // rows)
        optional = (absent if t is None else t.split(rows) for t in (gamma, mean))
        for part in zip(*parts, *optional):
            _paper_gradients(*part)
        return grad_weight, grad_alpha, None, None


def _paper_gradients(
    grad: Tensor,
    weight: Tensor,
    used: Tensor,
    alpha: Tensor,
    to_weight: Tensor,
    to_alpha: Tensor,
    gamma: Tensor | None,
    mean: Tensor | None,
) -> None:
    """∂w and ∂α of some channels, written to to_weight and to_alpha; mean: of each channel, where w is less it."""
    weight = weight if mean is None else weight - mean
    # 1{|w| ≤ 1} in one pass: the kernel's interval is open, so its edges are the next numbers beyond ±1.
    edge = 1 + torch.finfo(weight.dtype).eps
    torch.ops.aten.hardtanh_backward.grad_input(grad, weight, -edge, edge, grad_input=to_weight)
    to_weight.mul_(alpha)
    if gamma is not None:
        residual = (weight - used).mul_(gamma)
        to_weight.add_(residual)
        grad = torch.sub(grad, residual, out=residual)
    to_alpha.copy_(_over_channel(grad * weight.sign(), alpha))  # Σ (G - γ(w - ŵ)) b
    if mean is not None:  # less its mean is a projection, which takes the gradient back by itself
        to_weight.sub_(to_weight.mean(1, keepdim=True))


class _Released(torch.autograd.Function):
    """The released code: ŵ = a·q·sign(w) = a·Q(w) with Q' taken as 1 and, for the scale, w in the place of Q(w)."""

    @staticmethod
    def forward(ctx, weight: Tensor, a: Tensor, gamma: Tensor | None, clip: bool) -> Tensor:
        ctx.save_for_backward(weight, a, gamma)
        ctx.clip = clip
        return weight.sign().mul_(a * LEVEL)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weight, a, gamma = ctx.saved_tensors
        grad_weight, grad_a = grad * a, _over_channel(grad * weight, a)
        if gamma is not None:
            if ctx.clip:  # gamma holds the proportion of changed signs
                gamma = round_pass_intended(gamma * largest(grad).view(a.shape))
            quantised = weight.sign().mul_(LEVEL)
            residual = torch.addcmul(weight, a, quantised, value=-1)
            grad_weight.addcmul_(gamma, residual)
            grad_a = grad_a - gamma * _over_channel(residual.mul_(quantised), a)
        return grad_weight, grad_a, None, None


class _ReActNet(torch.autograd.Function):
    """The baseline as ReActNet's code has it: α = mean|w| without gradient, G·1{|w| ≤ 1} without the factor α."""

    @staticmethod
    def forward(ctx, weight: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.sign().mul_(alpha)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grad.masked_fill(weight.abs() > 1, 0), None


class _BiDet(torch.autograd.Function):
    """The baseline of BiDet's detectors: α = mean|w| with its gradient, and the sign with derivative 1."""

    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.sign().mul_(cam(weight))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        signs = weight.sign()
        alpha = cam(weight)
        return grad * alpha + signs * (_over_channel(grad * signs, alpha) / weight[0].numel())


def binarise(weight: Tensor, alpha: Tensor, gamma: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
    """ŵ = α·sign(w), whose backward adds the gradients of the reconstruction loss with the given γ (section 2.5).

    weight: [C_out, …]; alpha > 0 and gamma: [C_out, 1, …]; without gamma the reconstruction loss is absent.
    ∂w = α·G·1{|w| ≤ 1} + γ(w - ŵ), ∂α = Σ_j G b - γ Σ_j (w - ŵ) b. sign(0) = 0. mean: those of the rows of
    w [C_out, M], which then stands for itself less them, without a copy of it.
    """
    return _Paper.apply(weight, alpha, gamma, mean)


def binarise_released(weight: Tensor, a: Tensor, gamma: Tensor | None = None, clip: bool = False) -> Tensor:
    """ŵ = a·q·sign(w), q = 0.02, with the released code's gradients (section 2.6); shapes as `binarise`.

    ∂w = a·G + γ(w - ŵ), ∂a = Σ_j G w - γ Σ_j (w - ŵ)·q·sign(w). With clip, gamma holds the proportion of changed signs
    and γ = clip(proportion · max_j|G|, 1e-5, 2e-4) of the G that arrives: what the code intends.
    """
    return _Released.apply(weight, a, gamma, clip)


def binarise_reactnet(weight: Tensor, alpha: Tensor | None = None) -> Tensor:
    """ŵ = α·sign(w) with ∂w = G·1{|w| ≤ 1} and no gradient of α, by default mean|w| (section 2.1)."""
    return _ReActNet.apply(weight, cam(weight) if alpha is None else alpha)


def binarise_bidet(weight: Tensor) -> Tensor:
    """ŵ = mean|w|·sign(w) with ∂w = mean|w|·G + sign(w)·mean_j(G b): both factors have a gradient (section 3.4)."""
    return _BiDet.apply(weight)


def cam(weight: Tensor) -> Tensor:
    """Channel-wise absolute mean α_i = ‖w_i‖₁ / M (equation 3.140), [C_out, 1, …]."""
    return weight.detach().abs().mean(_within(weight), keepdim=True)


def largest(grad: Tensor) -> Tensor:
    """max_j |G_ij| of each output channel, [C_out]."""
    within = _within(grad)  # |G| would be a tensor of its own and take five times as long
    return torch.maximum(grad.amax(within), -grad.amin(within))


def reconstruction_loss(weight: Tensor, alpha: Tensor, gamma: Tensor) -> Tensor:
    """L_R = ½ Σ_i γ_i ‖w_i - α_i b_i‖² of one layer, a scalar (section 2.2); shapes as `binarise`."""
    return 0.5 * (gamma * (weight - alpha * weight.sign()).square()).sum()


def round_pass_released(p: Tensor) -> Tensor:
    """γ as the released code computes it: its clamp is the wrong way round, so that it is 2e-4 whatever p is."""
    return p.clamp(max=GAMMA_LOW).clamp(min=GAMMA_HIGH)


def round_pass_intended(p: Tensor) -> Tensor:
    """γ as the released code means it: clip(p, 1e-5, 2e-4)."""
    return p.clamp(GAMMA_LOW, GAMMA_HIGH)


def changed_proportion(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """The released code's 1 - mean_j relu(sign(w - g)·sign(w)), g the last gradient of w, [C_out] (section 2.6).

    A look ahead by a gradient step of length 1, not a look back; without g, the share of weights that are exactly 0.
    """
    ahead = weight if gradient is None else weight - gradient
    return 1 - (ahead.sign() * weight.sign()).relu().flatten(1).mean(1)


class BinaryWeight:
    """What a layer with binary weights ŵ has beside its operation; the weight stays real (latent).

    binarizer: `paper` (α = |scaling_factor|), `released` (α = 0.02·|scaling_factor|, the official code's gradients),
    `reactnet` or `bidet` (α = mean|w|, no parameter; two gradients). alpha_init: `cam` (mean|w|) or `randn` (N(0, 1),
    official).

    `Balance` sets `gamma`, and reads in `gradient` the sum of G = ∂L/∂ŵ since its last step, where it needs it.
    """

    def start_binary(self, binarizer: str, alpha_init: str) -> None:
        """Choose the binariser, once `weight` is there. Errors: ValueError for an unknown name."""
        if binarizer not in BINARIZERS:
            raise ValueError(f"binarizer {binarizer!r} is not one of {', '.join(BINARIZERS)}")
        self.binarizer = binarizer
        self.level = LEVEL if binarizer == "released" else 1.0
        shape = [len(self.weight), *[1] * (self.weight.ndim - 1)]
        self.scaling_factor = None if binarizer in WITHOUT_SCALE else nn.Parameter(self.weight.new_empty(shape))
        self.gamma: Tensor | None = None
        self.clip = self.watched = False
        self.gradient: Tensor | None = None
        self.reset_scale(alpha_init)

    @torch.no_grad()
    def reset_scale(self, how: str = "cam") -> None:
        """Start the scale from the latent weights, or from N(0, 1). Errors: ValueError for an unknown name."""
        if how not in ALPHA_INITS:
            raise ValueError(f"alpha_init {how!r} is not one of {', '.join(ALPHA_INITS)}")
        if self.scaling_factor is not None:
            self.scaling_factor.copy_(cam(self.weight) / self.level if how == "cam" else torch.randn_like(self.alpha()))

    def latent(self) -> Tensor:
        """The real weights whose signs are used, [C_out, …]."""
        return self.weight

    def mean(self) -> Tensor | None:
        """What the latent weights are less than `weight`, [C_out, 1], or None; without gradient."""
        return None

    def alpha(self) -> Tensor:
        """The scale α ≥ 0 that the weights are used with, [C_out, 1, …]."""
        return cam(self.weight) if self.scaling_factor is None else self.scaling_factor.abs() * self.level

    def binary_weight(self) -> Tensor:
        """ŵ, [C_out, …]."""
        if self.binarizer == "paper":
            weight = self.paper_weight()
        elif self.binarizer == "released":
            weight = binarise_released(self.latent(), self.scaling_factor.abs(), self.gamma, self.clip)
        elif self.binarizer == "reactnet":
            weight = binarise_reactnet(self.latent(), self.alpha())
        else:
            weight = binarise_bidet(self.latent())
        if self.watched and weight.requires_grad:
            weight.register_hook(self._note)
        return weight

    def paper_weight(self) -> Tensor:
        """ŵ with the paper's gradients."""
        return binarise(self.latent(), self.scaling_factor.abs(), self.gamma)

    def _note(self, grad: Tensor) -> None:
        self.gradient = grad if self.gradient is None else self.gradient + grad


class BinaryConv2d(BinaryWeight, nn.Conv2d):
    """Convolution of ±1 inputs with ŵ, by the options of BinaryWeight; forward changes no state.

    pad_value: what stands beyond the border, 0 as in the paper, or ±1 as deployment engines have it. The input is
    binarised before, by RSign. Errors: ValueError for an unknown name.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        binarizer: str = "paper",
        alpha_init: str = "cam",
        pad_value: float = 0.0,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.pad_value = pad_value
        self.start_binary(binarizer, alpha_init)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.pad_value:
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, value=self.pad_value), 0
        return F.conv2d(x, self.binary_weight(), self.bias, self.stride, padding, self.dilation, self.groups)


def is_projection(conv: nn.Conv2d) -> bool:
    """Whether it is the strided 1x1 convolution of a shortcut, which stays real (section 3.1)."""
    return conv.kernel_size == (1, 1) and conv.stride != (1, 1)


def convert(network: nn.Module, keep: Iterable[str] | None = None, **options) -> nn.Module:
    """Replace a network's convolutions by RSign and BinaryConv2d, in place; latent weights are the ones it has.

    keep: names of convolutions that stay real; by default the first one and strided 1x1 shortcuts, as in the paper.
    Linear layers always stay. options: those of BinaryConv2d. Errors: ValueError for a name that is no convolution,
    for padding that is not plain zeros, and when nothing is left to convert.
    """
    convs = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and not isinstance(m, BinaryConv2d)}
    if keep is None:
        keep = [name for number, (name, conv) in enumerate(convs.items()) if number == 0 or is_projection(conv)]
    unknown = set(keep) - convs.keys()
    if unknown:
        raise ValueError(f"keep: {', '.join(sorted(unknown))} is no convolution of the network ({', '.join(convs)})")
    chosen = {name: conv for name, conv in convs.items() if name not in set(keep)}
    if not chosen or "" in chosen:
        raise ValueError("there is nothing to convert: a network needs convolutions beyond those that stay real")
    for name, conv in chosen.items():
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError(f"{name}: padding {conv.padding!r} ({conv.padding_mode}); give numbers of zeros")
    for name, conv in chosen.items():
        binary = BinaryConv2d(
            *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation),
            *(conv.groups, conv.bias is not None),
            **options,
        ).to(conv.weight)
        binary.weight, binary.bias = conv.weight, conv.bias
        binary.reset_scale(options.get("alpha_init", "cam"))
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Sequential(RSign(conv.in_channels).to(conv.weight), binary))
    return network


def _within(weight: Tensor) -> list[int]:
    """The dimensions inside an output channel."""
    return list(range(1, weight.ndim))


def _over_channel(values: Tensor, like: Tensor) -> Tensor:
    """Sum within each output channel, in the scale's shape."""
    return values.sum(_within(values)).view(like.shape)
