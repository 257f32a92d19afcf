"""snnTorch's leaky neuron, by the protocol of benchmarks/measure.py."""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: folders here bear library names
import measure


def lif(args: argparse.Namespace) -> "Steps":
    from snntorch import Leaky, surrogate

    return Steps(Leaky(beta=0.5, reset_mechanism="zero", spike_grad=surrogate.sigmoid(slope=4)))


class Steps(nn.Module):
    """A loop over time, as its tutorials write it; the membrane begins at rest."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        membrane, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s, membrane = self.neuron(x_t, membrane)
            spikes.append(s)
        return torch.stack(spikes)


if __name__ == "__main__":
    args = measure.parser(__doc__).parse_args()
    measure.use_site(args.site)
    args.task = "lif"
    raise SystemExit(measure.main("snntorch", version("snntorch"), args, {"lif": lif}))
