"""saccade, by the protocol of benchmarks/measure.py."""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: folders here bear library names
import measure

import saccade
from saccade.nn.neurons import make_neuron


def spikformer(args: argparse.Namespace) -> nn.Module:
    name = "spikformer_4_384" if args.patch == 4 else "spikformer_8_512"
    model = saccade.create_model(
        name,
        num_classes=args.classes,
        image_size=args.size,
        T=args.T,
        dim=args.dim,
        depth=args.depth,
        heads=args.heads,
    ).to(args.device)
    return model.to(memory_format=torch.channels_last) if args.device == "cuda" else model


def lif(args: argparse.Namespace) -> nn.Module:
    neuron = make_neuron({"name": "lif", "tau": 2.0, "decay_input": True})
    return neuron.to(args.device)


if __name__ == "__main__":
    args = measure.parser(__doc__).parse_args()
    tasks = {"spikformer": spikformer, "lif": lif}
    raise SystemExit(measure.main("saccade", version("saccade"), args, tasks))
