"""Norse's LIF without a synaptic current, by the protocol of benchmarks/measure.py."""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: folders here bear library names
import measure


def lif(args: argparse.Namespace) -> "Steps":
    from norse.torch import LIFBoxCell, LIFBoxParameters

    # v + dt / tau_mem (x - v) with dt / tau_mem = 1/2
    parameters = LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0, device=args.device))
    return Steps(LIFBoxCell(p=parameters, dt=0.001))


class Steps(nn.Module):
    """A loop over time; the membrane begins at rest."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, spikes = None, []
        for x_t in x:
            s, state = self.cell(x_t, state)
            spikes.append(s)
        return torch.stack(spikes)


if __name__ == "__main__":
    args = measure.parser(__doc__).parse_args()
    measure.use_site(args.site)
    args.task = "lif"
    raise SystemExit(measure.main("norse", version("norse"), args, {"lif": lif}))
