"""Official checkpoints into ours: names and shapes through the model's key map, strictly."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from saccade.models import MODELS, SpikingModel, create_model

_HOLDERS = ("state_dict", "model", "model_state_dict", "net")
"""Keys under which training scripts put the weights."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A model with official weights, and the keys that were left behind, with reasons."""

    model: SpikingModel
    dropped: dict[str, str]


def convert(path: Path, name: str) -> Converted:
    """Load an official PyTorch checkpoint into the named model.

    The numbers of classes and of input channels follow the checkpoint.

    Args:
        path: of a .pth or .pt file; only tensors, plain containers and `argparse.Namespace`
            are unpickled.
        name: of the model it belongs to.

    Raises:
        ValueError: for a broken, unsafe or foreign file, or one that does not fit the model.
    """
    entry = MODELS[name]
    if (keys := entry.keys) is None:
        raise ValueError(f"model {name!r} has no official checkpoints")
    state = read_official(path)
    options = entry.implied(state) if entry.implied else {}
    model = create_model(name, **options)
    kept = {key: keys.rename(key) for key in state}
    sizes = {ours: state[key] for key, ours in kept.items() if ours is not None}
    model = create_model(name, **options, **_sizes(sizes, model))
    model.load_state_dict(keys.load(state, model.state_dict()))
    dropped = {key: keys.reason(key) or "" for key, ours in kept.items() if ours is None}
    return Converted(model=model.eval(), dropped=dropped)


def _sizes(state: Mapping[str, Tensor], model: SpikingModel) -> dict[str, Any]:
    """What the shapes of the first and the last layer say."""
    sizes: dict[str, Any] = {}
    if (head := state.get(model.last)) is not None and head.dim():
        sizes["num_classes"] = head.shape[0] // model.voters
    first = next(n for n, p in model.named_parameters() if p.dim() == 4)
    if first in state and state[first].dim() > 1:  # another shape is refused when it is loaded
        sizes["in_channels"] = state[first].shape[1]
    return sizes


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, without DataParallel's prefix.

    Raises:
        ValueError: where there is none, or the file asks for code to be run.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}, expected a file that torch.save wrote")
    try:
        with torch.serialization.safe_globals([Namespace]):
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each have their own
        holds = "it is damaged, or something else"
        if isinstance(error, UnpicklingError):
            holds = "it holds more than tensors, which only running its code would bring back"
        raise ValueError(
            f"{path} is not a checkpoint that is safe to read: {holds}; expected what "
            "torch.save(model.state_dict(), ...) writes"
        ) from error
    for holder in _HOLDERS:
        if isinstance(content, Mapping) and isinstance(content.get(holder), Mapping):
            content = content[holder]
            break
    if not isinstance(content, Mapping) or not content:
        empty = "an empty " if isinstance(content, Mapping) else "a "
        raise ValueError(
            f"{path} holds {empty}{type(content).__name__}, expected a state dict of tensors"
        )
    tensors = {str(k).removeprefix("module."): v for k, v in content.items()}
    if not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ValueError(f"{path}: found no state dict under {', '.join(_HOLDERS)} or at the top")
    return tensors
