"""How something is timed, and on what."""

from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from saccade._registry import nearest
from saccade.train.devices import tuned as tuned
from saccade.train.outcome import hardware, versions

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where and how often.

    Args:
        device: auto takes CUDA where there is a device.
        precision: float32, bfloat16 or float16. A model runs under autocast, an op on tensors
            of that dtype.
        n: samples of each step.
        graph: whether each step becomes one CUDA graph first.
        products: of `saccade.transform.fuse`, which then makes the model that is timed, without
            autocast; None leaves the model as it is.

    Raises:
        ValueError: for an unknown precision, n < 1, a device that is not there, or a graph
            elsewhere than on CUDA.
    """

    device: str = "auto"
    precision: str = "float32"
    n: int = 10
    graph: bool = False
    products: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"unknown precision {self.precision!r}; {nearest(self.precision, list(PRECISIONS))}"
            )
        if self.n < 1:
            raise ValueError(f"got n={self.n}, expected 1 sample or more")
        if self.place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"got device {self.device}, and torch finds no CUDA device here")
        if self.graph and self.place.type != "cuda":
            raise ValueError(f"got a CUDA graph on {self.place.type}, expected a CUDA device")

    @property
    def place(self) -> torch.device:
        """The device."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def casts(self) -> bool:
        """Whether a model runs under autocast."""
        return self.precision != "float32" and self.products is None

    @property
    def dtype(self) -> torch.dtype:
        """That of the precision."""
        return PRECISIONS[self.precision]

    def conditions(self) -> dict[str, Any]:
        """What can change a number: settings, hardware, versions."""
        return {
            "device": self.place.type,
            "precision": self.precision,
            "n": self.n,
            "graph": self.graph,
            "products": self.products,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "hardware": hardware(self.place),
            "versions": versions() | optional_versions("triton", "numba"),
        }


def optional_versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
