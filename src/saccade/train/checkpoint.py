"""Checkpoints: one safetensors file that is a whole state, and a JSON file for people.

`last.safetensors` holds the weights under their own names, the optimiser's tensors under
"optim/", averaged weights (if there are any) under "average/", and everything else as JSON in the
header, so that a run killed at any moment finds either the old state or the new one.
`state.json` repeats the header; it is never read back.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from saccade.models import SpikingModel, describe, rebuild
from saccade.train.files import write_atomically, write_json

WEIGHTS, STATE = "last.safetensors", "state.json"
_OPTIM, _AVERAGE = "optim/", "average/"


@dataclass(kw_only=True)
class Position:
    """How far a run has come; the sums are of the epoch that is under way."""

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    images: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    epoch_seconds: float = 0.0


@dataclass(kw_only=True)
class Header:
    """What stands beside the tensors."""

    model: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    position: dict[str, Any] | None = None
    optim: dict[str, Any] | None = None


def save_weights(path: Path, model: SpikingModel, data: dict[str, Any]) -> None:
    """A file of weights alone, which `saccade.load` reads."""
    _write(path, model.state_dict(), Header(model=describe(model), data=data))


def save_run(
    run: Path,
    model: SpikingModel,
    optimizer: torch.optim.Optimizer,
    position: Position,
    data: dict[str, Any],
    average: SpikingModel | None = None,
) -> None:
    """The whole state of a run, atomically."""
    tensors, numbers = _split_optimizer(optimizer)
    if average is not None:
        tensors |= {_AVERAGE + name: t for name, t in average.state_dict().items()}
    header = Header(model=describe(model), data=data, position=asdict(position), optim=numbers)
    _write(run / WEIGHTS, model.state_dict() | tensors, header)
    write_json(run / STATE, {k: v for k, v in asdict(header).items() if k != "optim"})


def restore_run(
    run: Path,
    model: SpikingModel,
    optimizer: torch.optim.Optimizer,
    average: SpikingModel | None = None,
) -> Position | None:
    """Bring models and optimiser to the saved state; None where nothing was saved yet.

    Raises:
        ValueError: where the file is broken or belongs to another model.
    """
    if not (run / WEIGHTS).exists():
        return None
    header, tensors = read(run / WEIGHTS)
    if header.position is None or header.optim is None:
        raise ValueError(f"{run / WEIGHTS} holds weights alone, not the state of a run")
    _load_weights(model, _weights(tensors), run / WEIGHTS)
    if average is not None:
        _load_weights(average, _averaged(tensors), run / WEIGHTS)
    _join_optimizer(optimizer, tensors, header.optim)
    return Position(**header.position)


def load_model(path: Path) -> tuple[SpikingModel, dict[str, Any]]:
    """The model of a weights file, and what is known of its data; see `saccade.load`.

    Where weights were averaged, these are what is loaded.
    """
    header, tensors = read(path)
    model = rebuild(header.model)
    _load_weights(model, _averaged(tensors) or _weights(tensors), path)
    return model.eval(), header.data


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of one of our files.

    Raises:
        ValueError: for a missing, truncated or foreign file.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as f:
            header = json.loads((f.metadata() or {}).get("saccade", "null"))
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); expected a checkpoint of saccade "
            "(an official .pth goes through `saccade convert`)"
        ) from error
    if not _is_ours(header):
        raise ValueError(
            f"{path} is a safetensors file of another program: it does not say which saccade "
            "model it belongs to"
        )
    return Header(**header), tensors


def _is_ours(header: Any) -> bool:
    """Whether it describes a model, and the state of a run or none."""
    if not isinstance(header, dict) or not set(header) <= {f.name for f in fields(Header)}:
        return False
    model, position, optim = (header.get(key) for key in ("model", "position", "optim"))
    return (
        isinstance(model, dict)
        and isinstance(model.get("name"), str)
        and isinstance(model.get("config"), dict)
        and isinstance(header.get("data", {}), dict)
        and (position is None or _keys(position) == {f.name for f in fields(Position)})
        and (optim is None or _keys(optim) == {"numbers"})
    )


def _keys(value: Any) -> set[str]:
    return set(value) if isinstance(value, dict) else set()


def _write(path: Path, tensors: dict[str, Tensor], header: Header) -> None:
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"saccade": json.dumps(asdict(header), allow_nan=False)}
    write_atomically(path, save(plain, metadata))


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: t for k, t in tensors.items() if not k.startswith((_OPTIM, _AVERAGE))}


def _averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(_AVERAGE): t for k, t in tensors.items() if k.startswith(_AVERAGE)}


def _load_weights(model: SpikingModel, weights: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit model {model.name!r}: {error}") from error


def _split_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by "optim/<parameter>/<slot>", and the rest as plain numbers."""
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, slots in whole["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIM}{index}/{slot}"] = value
            else:
                numbers.setdefault(str(index), {})[slot] = value
    return tensors, {"numbers": numbers}


def _join_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], header: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {int(i): dict(n) for i, n in header["numbers"].items()}
    for name, value in tensors.items():
        if name.startswith(_OPTIM):
            index, slot = name.removeprefix(_OPTIM).split("/")
            state.setdefault(int(index), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
