"""Quantised convolution and linear layers, and how a network gets them (section 2.2)."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lts.method.quantisers import QUANTISERS, Grid, Untouched, WeightQuantiser, levels, memory_format


class Quantised:
    """What QuantConv2d and QuantLinear share: Q(x), Q(w) and the frozen entries of w.

    ticket: what the scratcher knows of the weights, None without one. rows: int64 output rows whose weights still
    learn, None for all; only these enter the weight gradient.
    """

    ticket = None
    rows: Tensor | None = None
    initialising = False
    cached: tuple[tuple, Tensor] | None = None

    @property
    def weight_bits(self) -> int:
        return self.weight_quantiser.bits

    @property
    def activation_bits(self) -> int:
        return self.activation_quantiser.bits

    def train(self, mode: bool = True):
        self.cached = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.initialising:
            self.weight_quantiser.initialise(self.weight.detach())
            self.activation_quantiser.initialise(x)
        return self.combine(self.activation_quantiser(self.sampled(x)), self.scaled_weight())

    def sampled(self, x: Tensor) -> Tensor:
        """The part of the input that the layer looks at."""
        return x

    def scaled_weight(self) -> Tensor:
        """Q(w) times the factor that the quantiser of the input leaves out; kept between batches of an evaluation."""
        sources = (self.weight, *self.weight_quantiser.parameters())
        if self.training or torch.is_grad_enabled() or any(p.is_inference() for p in sources):
            return self.quantised_weight() * self.activation_quantiser.factor
        # Counters of in-place changes: weights that were loaded or trained since are quantised anew.
        version = tuple((p.data_ptr(), p._version) for p in sources)
        if self.cached is None or self.cached[0] != version:
            self.cached = version, self.quantised_weight() * self.activation_quantiser.factor
        return self.cached[1]

    def quantised_weight(self) -> Tensor:
        """Q(w); frozen entries get no gradient, and pass one to the quantiser's bounds only if their ticket says so."""
        frozen = None if self.ticket is None else self.ticket.frozen()
        if frozen is None:
            return self.weight_quantiser(self.weight)
        if self.ticket.bounds_gradient:
            return self.weight_quantiser(torch.where(frozen, self.weight.detach(), self.weight))
        quantised = self.weight_quantiser(self.weight)
        return torch.where(frozen, quantised.detach(), quantised)

    @torch.no_grad()
    def integer_weight(self) -> tuple[Tensor, Tensor, Tensor]:
        """codes uint8 [like weight] in 0..2^b - 1, scale and offset with Q(w) = scale · codes + offset."""
        quantiser = self.weight_quantiser
        return levels(quantiser.normalise(self.weight), quantiser.n).to(torch.uint8), *quantiser.grid()

    def input_grid(self) -> Grid:
        """The constants with which the input is quantised."""
        return self.activation_quantiser.grid()


class QuantConv2d(Quantised, nn.Conv2d):
    """conv(Q(x), Q(w), bias)."""

    def sampled(self, x: Tensor) -> Tensor:
        """A strided 1×1 convolution skips positions: they need no quantising, and get no gradient either way."""
        skips = self.kernel_size == (1, 1) and self.padding == (0, 0) and self.stride != (1, 1)
        if not skips:
            return x
        return x[..., :: self.stride[0], :: self.stride[1]].contiguous(memory_format=memory_format(x))

    def combine(self, x: Tensor, w: Tensor) -> Tensor:
        stride = (1, 1) if self.kernel_size == (1, 1) and self.padding == (0, 0) else self.stride
        if self.rows is None or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return F.conv2d(*self.padded(x, w, stride))
        x, w = same_precision(x, w)
        return PartialConvolution.apply(x, w, self.bias, stride, self.padding, self.dilation, self.groups, self.rows)

    def padded(self, x: Tensor, w: Tensor, stride: tuple[int, int]) -> tuple:
        """The arguments of the convolution, after padding that is not with zeros."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), 0
        return x, w, self.bias, stride, padding, self.dilation, self.groups


class QuantLinear(Quantised, nn.Linear):
    """Q(x) Q(w)ᵀ + bias."""

    def combine(self, x: Tensor, w: Tensor) -> Tensor:
        if self.rows is None or x.ndim != 2:
            return F.linear(x, w, self.bias)
        return PartialLinear.apply(*same_precision(x, w), self.bias, self.rows)


def same_precision(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """What autocast would do; it does not look into the functions below."""
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return x, w
    return tuple(t.to(torch.get_autocast_dtype(kind)) for t in (x, w))


class PartialConvolution(torch.autograd.Function):
    """A convolution whose weight gradient is computed for some output channels only and is 0 for the others."""

    @staticmethod
    def forward(ctx, x, w, bias, stride, padding, dilation, groups, rows):
        ctx.save_for_backward(x, w, rows)
        ctx.sizes = None if bias is None else list(bias.shape)
        ctx.settings = stride, padding, dilation, False, (0, 0), groups
        return F.conv2d(x, w, bias if bias is None else bias.to(x.dtype), stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, grad):
        x, w, rows = ctx.saved_tensors
        backward = torch.ops.aten.convolution_backward
        dense = len(rows) > 0 and ctx.settings[-1] > 1  # channels of one group cannot be dropped one by one
        wanted = [ctx.needs_input_grad[0], dense, ctx.sizes is not None]
        grad_x, grad_w, grad_bias = backward(grad, x, w, ctx.sizes, *ctx.settings, wanted)
        if not dense:
            grad_w = torch.zeros_like(w)
        if len(rows) and not dense:
            part = backward(
                grad.index_select(1, rows), x, w.index_select(0, rows), None, *ctx.settings, [False, True, False]
            )
            grad_w.index_copy_(0, rows, part[1])
        return grad_x, grad_w, grad_bias, None, None, None, None, None


class PartialLinear(torch.autograd.Function):
    """As PartialConvolution, for a linear layer on [B, features]."""

    @staticmethod
    def forward(ctx, x, w, bias, rows):
        ctx.save_for_backward(x, w, rows)
        ctx.biased = bias is not None
        return F.linear(x, w, bias if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, w, rows = ctx.saved_tensors
        grad_w = torch.zeros_like(w)
        if len(rows):
            grad_w.index_copy_(0, rows, grad.index_select(1, rows).t() @ x)
        return grad @ w, grad_w, grad.sum(0) if ctx.biased else None, None


LAYERS = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}


def quantise(
    model: nn.Module,
    weight_bits: int = 2,
    activation_bits: int = 2,
    quantiser: str = "lts",
    first_last: str = "same",
    overrides: Mapping[str, tuple[int, int]] | None = None,
) -> nn.Module:
    """Turn every convolution and linear layer of the model into a quantised one, in place; returns the model.

    bits: 1 to 8, or 32 for none. quantiser: one of QUANTISERS. first_last: "same", "8bit" or "fp", for the first and
    the last of these layers in module order. overrides: {layer: (weight bits, activation bits)}, stronger than all
    else. Errors: ValueError for bits, a quantiser or a layer that does not exist.
    """
    if quantiser not in QUANTISERS:
        raise ValueError(f"quantiser {quantiser}: not one of {', '.join(QUANTISERS)}")
    if first_last not in ("same", "8bit", "fp"):
        raise ValueError(f"first_last {first_last}: not one of same, 8bit, fp")
    found = [(name, layer) for name, layer in model.named_modules() if type(layer) in LAYERS]
    overrides = dict(overrides or {})
    if unknown := sorted(overrides.keys() - {name for name, _ in found}):
        raise ValueError(f"no convolution or linear layer {unknown[0]}; there are {', '.join(n for n, _ in found)}")
    for number, (name, layer) in enumerate(found):
        bits = weight_bits, activation_bits
        if number in (0, len(found) - 1) and first_last != "same":
            bits = (8, 8) if first_last == "8bit" else (32, 32)
        convert(layer, name, *overrides.get(name, bits), quantiser)
    return model


def convert(layer: nn.Module, name: str, weight_bits: int, activation_bits: int, quantiser: str) -> None:
    """Make one layer a quantised one; its parameters, hooks and place in the model stay. Errors: ValueError."""
    for what, bits in (("weight", weight_bits), ("activation", activation_bits)):
        if bits != 32 and not 1 <= bits <= 8:
            raise ValueError(f"{name}: {what} bits are 1 to 8, or 32 for none, not {bits}")
    if weight_bits == activation_bits == 32:
        return
    weight_class, activation_class = QUANTISERS[quantiser]
    layer.__class__ = LAYERS[type(layer)]
    layer.weight_quantiser = Untouched() if weight_bits == 32 else weight_class(weight_bits)
    layer.activation_quantiser = Untouched() if activation_bits == 32 else activation_class(activation_bits)
    layer.to(layer.weight)


def quantised_layers(model: nn.Module) -> dict[str, Quantised]:
    """The quantised layers by name, in module order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Quantised)}


def scratchable_layers(model: nn.Module) -> dict[str, Quantised]:
    """The layers whose weights have levels."""
    return {name: x for name, x in quantised_layers(model).items() if isinstance(x.weight_quantiser, WeightQuantiser)}


def quantiser_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The learned scalars of all quantisers: bounds or steps."""
    for layer in quantised_layers(model).values():
        yield from layer.weight_quantiser.parameters()
        yield from layer.activation_quantiser.parameters()


@torch.no_grad()
def initialise(model: nn.Module, images: Tensor) -> None:
    """Set the quantisers from one batch, each layer's on the quantised output of those before it (section 2.1).

    images: [B, 3, H, W] of training. In training mode: BatchNorm's running statistics take one step.
    """
    mode, layers = model.training, quantised_layers(model).values()
    try:
        for layer in layers:
            layer.initialising = True
        model.train()(images)
    finally:
        for layer in layers:
            layer.initialising = False
        model.train(mode)


def narrowest(model: nn.Module) -> Tensor:
    """The smallest range u - l, or step, of any quantiser, 0-dim: not positive once one has collapsed."""
    spans = [span for layer in quantised_layers(model).values() for span in spans_of(layer).values()]
    return torch.stack([s.float() for s in spans]).min() if spans else torch.tensor(torch.inf)


def collapsed(model: nn.Module) -> list[str]:
    """Quantisers whose range is not positive, e.g. `conv1.weight`; waits for the device."""
    layers = quantised_layers(model).items()
    return [f"{name}.{what}" for name, layer in layers for what, span in spans_of(layer).items() if not span > 0]


def spans_of(layer: Quantised) -> dict[str, Tensor]:
    """The learned ranges of a layer's quantisers by what they quantise."""
    spans = {}
    for what, quantiser in (("weight", layer.weight_quantiser), ("activation", layer.activation_quantiser)):
        if hasattr(quantiser, "upper"):
            spans[what] = (quantiser.upper - quantiser.lower).detach()
        elif hasattr(quantiser, "step"):
            spans[what] = quantiser.step.detach()
    return spans
