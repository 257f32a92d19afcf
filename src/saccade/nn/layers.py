"""Layers on [T B C H W]: each step of each sample is a frame, time meets only in the neurons."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from saccade._registry import Part, Registry
from saccade.nn.joined import JoinedNorm
from saccade.nn.neurons import WATCHED, is_watched, make_neuron
from saccade.ops import Norm, conv_lif, linear_lif, summed

MLPS: Registry[type[nn.Module]] = Registry("mlp")


def per_frame(
    fn: Callable[[Tensor], Tensor], x: Float[Tensor, "T B C H W"]
) -> Float[Tensor, "T B *frame"]:
    """Apply a function of frames [N C H W] to every step and sample.

    Batch norm inside it pools its statistics over time as well, as the official codes do.
    """
    y = fn(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


def check_maps(x: Tensor, channels: int | None = None) -> None:
    """Raise a ValueError unless `x` is [T B C H W] of floating point.

    Args:
        x: whatever came.
        channels: C; None takes any.
    """
    expected = f"[T, B, {channels or 'C'}, H, W]"
    if not isinstance(x, Tensor):
        raise ValueError(f"got a {type(x).__name__}, expected a tensor {expected}")
    if x.dim() != 5 or channels not in (None, x.shape[2]):
        tokens = x.dim() == 4 and channels in (None, x.shape[3])
        raise ValueError(
            f"got an input of shape {list(x.shape)}, expected {expected}: steps, samples, "
            "channels, grid"
            + ("; tokens [T, B, N, C] are x.mT.unflatten(-1, (H, W))" if tokens else "")
        )
    if not x.is_floating_point():
        raise ValueError(f"got an input of {x.dtype}, expected floating point, as of x.float()")


def added(onto: Tensor | None, branch: nn.Module, x: Tensor) -> Tensor:
    """branch(x), added to `onto` where that is given.

    A branch with `adds_onto` takes what its spikes are added to and spares a pass over both; not
    where it is watched, since whoever watches it expects spikes.

    Raises:
        ValueError: where the two are not of one shape: their sum would be a broadcast.
    """
    fused = onto is not None and getattr(branch, "adds_onto", False) and not is_watched(branch)
    y: Tensor = branch(x, onto) if fused else branch(x)
    return y if fused else summed(y, onto, type(branch).__name__)


def project(projections: Sequence[nn.Module], x: Real[Tensor, "T B C H W"]) -> list[Tensor]:
    """Spikes of several linear projections of one input, or of one.

    Where all run fused they are one operation (`saccade.ops.linear_lif`), which may share among
    them what it has to know of the input.
    """
    layers = fused_layers(projections, x)
    return [p(x) for p in projections] if layers is None else list(linear_lif(*layers))


def fused_layers(
    projections: Sequence[nn.Module], x: Real[Tensor, "T B C H W"]
) -> tuple[Any, ...] | None:
    """Linear projections of one input as arguments of `saccade.ops.linear_lif`; None where one is
    something else or runs its parts one by one.
    """
    plain = [p for p in projections if type(p) is Projection and not is_watched(p)]
    fused = [p for p in plain if p.is_linear() and p.apart() is None]
    if len(fused) < len(projections):
        return None
    check_maps(x, fused[0].conv.in_channels)
    layers = ((p.conv.weight, p._norm(), *p.neuron.charge(), p.neuron.fire) for p in fused)
    return once(x), len(x), *chain.from_iterable(layers)


def once(x: Tensor) -> Tensor:
    """One step of a picture that is shown T times."""
    return x[:1] if len(x) > 1 and x.stride(0) == 0 else x


class Projection(nn.Module):
    """Convolution, batch norm, neuron: integers or reals in, spikes out.

    The three run as one fused operation (`saccade.ops.conv_lif`) where nobody watches the parts: a
    hook on one of them, a neuron that is fed step by step, or a part of another class makes them
    run one by one.

    Args:
        c_in, c_out: channels.
        kernel: side of the square kernel; the padding keeps the grid. 1 is a linear map.
        stride: of the convolution; 2 halves the grid.
        bias: of the convolution. Batch norm follows and makes it redundant; some official
            models have it all the same.
        neuron: by name, or name and options.
        pools: whether a 3x3 max-pool of stride 2 follows the spikes.
    """

    adds_onto: ClassVar[bool] = True

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        bias: bool = False,
        neuron: Part = "lif",
        pools: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=bias)
        self.norm = nn.BatchNorm2d(c_out)
        self.neuron = make_neuron(neuron)
        self.pools = pools

    def forward(
        self, x: Float[Tensor, "T B C H W"], onto: Tensor | None = None
    ) -> Float[Tensor, "T B D h w"]:
        """Project channels; time and batch stay, and the grid unless it strides or pools.

        Args:
            x: integers or reals.
            onto: what the spikes are added to, of their shape; None leaves them.
        """
        check_maps(x, self.conv.in_channels)
        if self.apart() is None:
            cell = self._norm(), *self.neuron.charge(), self.neuron.fire
            layer = self.conv.weight, self.conv.stride[0], *cell
            fused: Tensor = conv_lif(once(x), *layer, len(x), self.pools, onto)
            return fused
        spikes: Tensor = self.neuron(per_frame(lambda frames: self.norm(self.conv(frames)), x))
        if self.pools:
            spikes = per_frame(lambda frames: max_pool2d(frames, 3, 2, 1), spikes)
        return summed(spikes, onto)

    def is_linear(self) -> bool:
        """Whether it maps every place by itself: no taps, no stride, no pool."""
        return self.conv.kernel_size == self.conv.stride == (1, 1) and not self.pools

    def apart(self) -> str | None:
        """Why the parts run one by one, or None where they run fused."""
        norms = nn.BatchNorm2d, JoinedNorm
        for name, part, plain in ("conv", self.conv, (nn.Conv2d,)), ("norm", self.norm, norms):
            if type(part) not in plain:
                return f"the {name} is a {type(part).__name__}"
            if is_watched(part):
                return f"the {name} {WATCHED}"
        n = self.norm
        if n.momentum is None or n.running_mean is None or n.weight is None:
            return "the norm lacks a momentum, running statistics or weights"
        return self.neuron.unfusable()

    def _norm(self) -> Norm:
        """Batch norm as it stands, with the convolution's bias."""
        n = self.norm
        if n.training and n.num_batches_tracked is not None:
            n.num_batches_tracked.add_(1)
        return Norm(
            weight=n.weight,
            bias=n.bias,
            running_mean=cast(Tensor, n.running_mean),
            running_var=cast(Tensor, n.running_var),
            training=n.training,
            momentum=cast(float, n.momentum),
            eps=n.eps,
            offset=self.conv.bias,
            join=n.join if isinstance(n, JoinedNorm) else None,
        )


class DepthwiseConvolution(nn.Module):
    """Depthwise 3x3 convolution and batch norm: currents in, currents out, channels apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
        """The grid stays."""
        return per_frame(lambda frames: self.norm(self.conv(frames)), x)


@MLPS.add("mlp")
class MLP(nn.Module):
    """Two projections at every token: C -> hidden -> C.

    Source: Spikformer, arXiv:2209.15425. Both linear maps have a bias in the official code.

    Args:
        dim, hidden, out: channels; `out` is `dim` unless given.
        neuron: by name, or name and options.
        dwc: whether a depthwise 3x3 convolution with a neuron stands between the two.
    """

    adds_onto: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        out: int | None = None,
        neuron: Part = "lif",
        dwc: bool = False,
    ) -> None:
        super().__init__()
        self.fc1 = Projection(dim, hidden, bias=True, neuron=neuron)
        between = (DepthwiseConvolution(hidden), make_neuron(neuron)) if dwc else ()
        self.between = nn.Sequential(*between)
        self.fc2 = Projection(hidden, out or dim, bias=True, neuron=neuron)

    def forward(
        self, x: Real[Tensor, "T B C H W"], onto: Tensor | None = None
    ) -> Real[Tensor, "T B D H W"]:
        """Spikes in, spikes out; or their sum with `onto`."""
        (hidden,) = project((self.fc1,), x)
        return added(onto, self.fc2, self.between(hidden))


class Head(nn.Module):
    """Mean over the grid, then one linear map: logits of every step."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, x: Real[Tensor, "T B C H W"]) -> Float[Tensor, "T B K"]:
        """Real-valued logits; averaging them over T is the caller's."""
        # tokens as one axis with channels last: the gradient of the mean then lies as x does
        tokens = x.permute(0, 1, 3, 4, 2).flatten(2, 3)
        if not tokens.is_floating_point():  # torch would add up a copy in float32
            tokens = tokens.half()  # exact for integers of eight bits
        # divided behind the sum, so that backward repeats quotients and does not divide repeats
        dtype = self.linear.weight.dtype
        total = tokens.sum(2, dtype=torch.promote_types(dtype, torch.float32))
        logits: Tensor = self.linear((total / tokens.shape[2]).to(dtype))
        return logits


def split_heads(x: Real[Tensor, "T B C H W"], heads: int) -> Real[Tensor, "T B h N d"]:
    """Grid to tokens (row-major), channels to heads: channel head * d + j."""
    T, B, C, H, W = x.shape
    return x.reshape(T, B, heads, C // heads, H * W).mT


def merge_heads(x: Real[Tensor, "T B h N d"], grid: tuple[int, int]) -> Real[Tensor, "T B C H W"]:
    """Inverse of `split_heads`."""
    T, B, h, _, d = x.shape
    return x.mT.reshape(T, B, h * d, *grid)
