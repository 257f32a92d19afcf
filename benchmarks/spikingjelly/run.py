"""SpikingJelly's Spikformer and LIF, by the protocol of benchmarks/measure.py.

The model is loaded without the package of all models and without the tools for distributed runs:
these import torchvision and h5py, and the Spikformer needs neither.
"""

import argparse
import importlib
import sys
import types
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: folders here bear library names
import measure

BASE = "spikingjelly.activation_based"


def shell(name: str) -> None:
    """A package whose modules can be imported and whose own __init__ does not run."""
    parent, _, last = name.rpartition(".")
    module = types.ModuleType(name)
    module.__path__ = [str(Path(importlib.import_module(parent).__path__[0]) / last)]
    sys.modules[name] = module


class Resetting(nn.Module):
    """Forgets the last batch, as its users have to, and averages the logits over time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.reset = importlib.import_module(f"{BASE}.functional").reset_net

    def forward(self, x: Tensor) -> Tensor:
        self.reset(self.model)
        y = self.model(x)
        return y.mean(0) if x.dim() == 4 else y


def spikformer(args: argparse.Namespace) -> nn.Module:
    for name in ("distributed.vision", "model"):
        shell(f"{BASE}.{name}")
    built = importlib.import_module(f"{BASE}.model.spikformer").Spikformer(
        T=args.T,
        img_size_h=args.size,
        img_size_w=args.size,
        patch_size=args.patch,
        num_classes=args.classes,
        embed_dims=args.dim,
        num_heads=args.heads,
        depths=args.depth,
    )
    return Resetting(built.to(args.device))


def lif(args: argparse.Namespace) -> nn.Module:
    neuron = importlib.import_module(f"{BASE}.neuron")
    surrogate = importlib.import_module(f"{BASE}.surrogate").Sigmoid(alpha=4.0)
    node = neuron.LIFNode(tau=2.0, detach_reset=True, step_mode="m", surrogate_function=surrogate)
    return Resetting(node.to(args.device))


if __name__ == "__main__":
    args = measure.parser(__doc__).parse_args()
    measure.use_site(args.site)
    tasks = {"spikformer": spikformer, "lif": lif}
    raise SystemExit(measure.main("spikingjelly", version("spikingjelly"), args, tasks))
