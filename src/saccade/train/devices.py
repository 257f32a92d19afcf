"""Fabric on one device or on many, and what the processes of a run say to each other."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from saccade._registry import nearest
from saccade.models import SpikingModel
from saccade.train.launch import launched, size_of

DEVICES = ("auto", "cpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp", "fsdp")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of every batch a process works on.

    Args:
        rank: number of the process, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    def of(self, count: int) -> slice:
        """This process's part of `count` things in a row; parts differ by one at most."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)


def check_device(device: str) -> str:
    """A device that is here.

    Raises:
        ValueError: for another name, or one that torch does not find.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}; {nearest(device, [*DEVICES])}")
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device, True):
        raise ValueError(
            f"got device {device}, which torch does not find here; expected cpu, or auto for the "
            "best that it does (saccade doctor says what is missing)"
        )
    return device


def open_fabric(
    *,
    device: str,
    precision: str,
    devices: int | None = None,
    nodes: int | None = None,
    strategy: str = "auto",
) -> Fabric:
    """Fabric, launched; a process of many joins the others here.

    Args:
        device: "auto", "cpu", "cuda" or "mps".
        precision: see `saccade.train.recipe.PRECISIONS`.
        devices: on each machine; None for as many as torchrun says, else one.
        nodes: machines; None as above.
        strategy: "ddp" keeps the model whole on each device, "fsdp" spreads weights, gradients and
            the optimiser's state (PyTorch's `fully_shard`); "auto" is ddp where there are several.

    Raises:
        ValueError: for an unknown strategy or device, a strategy that has not the precision, or
            more devices than there are processes or GPUs.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r}; {nearest(strategy, [*STRATEGIES])}")
    here, machines = size_of(devices, nodes)
    if strategy == "fsdp" and here * machines == 1:
        raise ValueError("got strategy fsdp for one device, expected at least 2 devices")
    if not launched():
        if here * machines > 1:
            raise ValueError(
                f"got devices={here} and nodes={machines}, but this is a single process; start "
                "several with `saccade train --devices` or torchrun"
            )
        check_device(device)
        return Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]
    found = torch.cuda.device_count()
    if here > found and (device == "cuda" or (device == "auto" and found)):
        raise ValueError(f"got --devices {here}, but this machine has {found} GPUs")
    if strategy == "fsdp" and precision == "16-mixed":
        raise ValueError(
            "got precision 16-mixed with strategy fsdp, expected bf16-mixed or 32-true, or ddp"
        )
    check_device(device)
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=machines,
        precision=precision,  # type: ignore[arg-type]
        strategy=_strategy(strategy, here * machines),
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def _strategy(name: str, world: int) -> DDPStrategy | ModelParallelStrategy:
    if name == "fsdp":
        return ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1)
    # statistics are equal everywhere already: see `synchronised`
    parameters = inspect.signature(DistributedDataParallel.__init__).parameters
    newer = "forward_sync_buffers" in parameters
    options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return DDPStrategy(**options)


def _shard(model: nn.Module, mesh: Any) -> nn.Module:
    """Each part of a list of parts is fetched when it runs, and the rest with the model."""
    mesh = mesh["data_parallel"]
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for part in module:
                fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def spread_model(fabric: Fabric, model: nn.Module) -> None:
    """Spread a model that does not learn as the one that does: in place, or not at all."""
    if isinstance(fabric.strategy, ModelParallelStrategy):
        fabric.strategy.setup_module(model)


def share_of(fabric: Fabric) -> Share:
    """The part of this process."""
    return Share(rank=fabric.global_rank, world=fabric.world_size)


def summed(fabric: Fabric, tensor: Tensor) -> Tensor:
    """A tensor summed over all processes, in float64, on the CPU."""
    total = tensor.detach().to(fabric.device, torch.float64)
    distributed.all_reduce(total)
    return total.cpu()


def gathered(fabric: Fabric, value: T) -> list[T]:
    """The value of each process, in order, on every process."""
    if fabric.world_size == 1:
        return [value]
    everyone: list[Any] = [None] * fabric.world_size
    distributed.all_gather_object(everyone, value)
    return everyone


def first_alone(fabric: Fabric, work: Callable[[], T]) -> T:
    """What the first process makes of it, on all of them; what it refuses, all refuse.

    Raises:
        ValueError: with the words of the first one's ValueError, OSError or ImportError.
    """
    if fabric.world_size == 1:
        return work()
    done: list[Any] = [None, None]
    if fabric.is_global_zero:
        try:
            done[0] = work()
        except (ValueError, OSError, ImportError) as error:
            done[1] = str(error)
    answer, refused = fabric.broadcast(done)
    if refused is not None:
        raise ValueError(refused)
    result: T = answer
    return result


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the parts on all devices; all processes must ask for it."""
    if not isinstance(tensor, DTensor):
        return tensor
    full: Tensor = tensor.full_tensor()
    return full


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory."""
    if not isinstance(tensor, DTensor):
        return tensor
    held: Tensor = tensor.to_local()
    return held


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, spread over devices or laid out in memory as a parameter of its shape is."""
    if value.shape != like.shape:
        return value
    if not isinstance(like, DTensor):  # rules for many tensors at once want them to lie alike
        return torch.empty_like(like, dtype=value.dtype).copy_(value)
    placed: Tensor = distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
    return placed


def place_model(fabric: Fabric, model: SpikingModel) -> None:
    """Bring it to the device; kernels of pictures lie there as the GPU's convolutions want them."""
    model.to(fabric.device)
    spread = isinstance(fabric.strategy, ModelParallelStrategy)  # takes contiguous weights only
    if fabric.device.type == "cuda" and len(model.frame) == 3 and not spread:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def wrap_model(fabric: Fabric, model: SpikingModel) -> _FabricModule:
    """The model as Fabric runs it.

    On several GPUs with ddp nothing stands around it: its gradients are summed in one piece, once
    they all are there (`saccade.train.step`), which a CUDA graph can hold.
    """
    if isinstance(fabric.strategy, DDPStrategy) and fabric.device.type == "cuda":
        return _FabricModule(model, fabric.strategy, original_module=model)
    wrapped: _FabricModule = fabric.setup_module(model)
    return wrapped


@contextmanager
def tuned() -> Iterator[None]:
    """Inside this block cuDNN measures which of its algorithms is the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def joins_by_itself(wrapped: _FabricModule) -> bool:
    """Whether what stands around a model averages its gradients over devices."""
    inside = wrapped._forward_module
    return isinstance(inside, DistributedDataParallel | FSDPModule)


def close_fabric(fabric: Fabric) -> None:
    """Leave the group of processes."""
    if fabric.world_size > 1:
        distributed.destroy_process_group()
