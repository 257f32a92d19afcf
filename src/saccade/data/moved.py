"""Small tensors of the CPU, brought to a device without waiting for what it is doing."""

import torch
from torch import Tensor


def moved(values: Tensor, device: torch.device) -> Tensor:
    """`values` on a device.

    From ordinary memory a copy to a GPU waits until all work before it is done; from page-locked
    memory it takes its turn among that work.
    """
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
