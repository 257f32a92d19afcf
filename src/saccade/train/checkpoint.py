"""Checkpoints: one safetensors file that is a whole state, and a JSON file for people.

`last.safetensors` holds the weights under their own names, the optimiser's tensors under
"optim/", averaged weights (if there are any) under "average/", and everything else as JSON in the
header, so that a run killed at any moment finds either the old state or the new one.
`state.json` repeats the header; it is never read back.

Weights alone may lie in parts, `weights-1-of-2.safetensors` and so on, each with the header.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from saccade.models import SpikingModel, describe, rebuild
from saccade.nn.folded import Folded
from saccade.train.devices import spread, whole
from saccade.train.files import write_atomically, write_json

WEIGHTS, STATE = "last.safetensors", "state.json"
_OPTIM, _AVERAGE = "optim/", "average/"
_PART = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


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
    epoch_waited: float = 0.0


@dataclass(kw_only=True)
class Header:
    """What stands beside the tensors."""

    model: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)
    position: dict[str, Any] | None = None
    optim: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    devices: int = 1


def save_weights(
    path: Path, model: SpikingModel, data: dict[str, Any], *, most: int | None = None
) -> None:
    """A file of weights alone, which `saccade.load` reads.

    Args:
        path: of the file.
        model: whose weights they are.
        data: what is known of the data it was trained on.
        most: bytes of tensors in one file; where there are more they lie in parts,
            NAME-1-of-N.safetensors and so on. A single tensor is not divided.

    Raises:
        ValueError: for a fused model, which no name can build again.
    """
    if any(isinstance(module, Folded) for module in model.modules()):
        raise ValueError(
            "got a fused model, expected the one that it was made from: save that, and fuse what "
            "saccade.load gives"
        )
    parts: list[dict[str, Tensor]] = [{}]
    for name, tensor in model.state_dict().items():
        held = sum(t.nbytes for t in parts[-1].values())
        if most is not None and parts[-1] and held + tensor.nbytes > most:
            parts.append({})
        parts[-1][name] = tensor
    for n, part in enumerate(parts, 1):
        name = path.name if len(parts) == 1 else f"{path.stem}-{n}-of-{len(parts)}.safetensors"
        _write(path.with_name(name), part, Header(model=describe(model), data=data))


@dataclass(kw_only=True)
class State:
    """What a run carries from one process to the next.

    Args:
        model, optimizer: whole or spread over devices.
        average: the averaged weights, where there are any; spread as the model is.
        scaler: keeps the loss scale of float16, where there is one.
    """

    model: SpikingModel
    optimizer: torch.optim.Optimizer
    average: SpikingModel | None = None
    scaler: torch.amp.GradScaler | None = None


def save_run(
    run: Path,
    state: State,
    position: Position,
    data: dict[str, Any],
    *,
    devices: int = 1,
    write: bool = True,
) -> None:
    """The whole state of a run, atomically.

    Where it is spread over devices, every process must call this; one of them writes.
    """
    weights = state.model.state_dict()
    if state.average is not None:
        weights |= {_AVERAGE + name: t for name, t in state.average.state_dict().items()}
    tensors = {name: _collect(t, write) for name, t in weights.items()}
    moved, numbers = _split_optimizer(state.optimizer.state_dict()["state"], write)
    if not write:
        return
    header = Header(
        model=describe(state.model),
        data=data,
        position=asdict(position),
        optim=numbers,
        scaler=state.scaler.state_dict() if state.scaler else None,
        devices=devices,
    )
    _write(run / WEIGHTS, tensors | moved, header)
    write_json(run / STATE, {k: v for k, v in asdict(header).items() if k != "optim"})


def _collect(tensor: Tensor, keep: bool) -> Tensor:
    """A whole tensor on the CPU; where it is not kept it was only helped to come together."""
    full = whole(tensor)
    return full.detach().cpu() if keep else full.new_empty(0)


@dataclass(kw_only=True)
class Saved:
    """A checkpoint of a run, read."""

    path: Path
    header: Header
    tensors: dict[str, Tensor]

    @property
    def position(self) -> Position:
        """How far the run had come."""
        assert self.header.position is not None
        return Position(**self.header.position)

    def restore_weights(self, model: SpikingModel, average: SpikingModel | None = None) -> None:
        """Bring model and average to the saved state, before they are spread over devices.

        Raises:
            ValueError: where the file belongs to another model.
        """
        _load_weights(model, _weights(self.tensors), self.path)
        if average is not None:
            _load_weights(average, _averaged(self.tensors), self.path)

    def restore_rest(self, state: State) -> None:
        """Bring the optimiser to the saved state, on the devices that hold its parameters."""
        assert self.header.optim is not None
        _join_optimizer(state.optimizer, self.tensors, self.header.optim)
        if state.scaler and self.header.scaler:
            state.scaler.load_state_dict(self.header.scaler)


def read_run(run: Path) -> Saved | None:
    """The saved state of a run; None where nothing was saved yet.

    Raises:
        ValueError: where the file is broken or holds no run.
    """
    path = run / WEIGHTS
    if not path.exists():
        return None
    header, tensors = read(path)
    if header.position is None or header.optim is None:
        raise ValueError(f"{path} holds weights alone, not the state of a run")
    return Saved(path=path, header=header, tensors=tensors)


def load_model(path: Path) -> tuple[SpikingModel, dict[str, Any]]:
    """The model of a weights file, and what is known of its data; see `saccade.load`.

    Args:
        path: of the file, of any of its parts, or of a folder: of a run, or of weights in parts.

    Where weights were averaged, these are what is loaded.
    """
    if path.is_dir():
        parts = [] if (path / WEIGHTS).exists() else sorted(path.glob("*-1-of-*.safetensors"))
        path = parts[0] if parts else path / WEIGHTS
    header, tensors = read(path)
    model = rebuild(header.model)
    _load_weights(model, _averaged(tensors) or _weights(tensors), path)
    return model.eval(), header.data


def read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of one of our files, with those of the other parts where it is one.

    Raises:
        ValueError: for a missing, truncated or foreign file, and for parts that are not of one.
    """
    found, tensors = None, dict[str, Tensor]()
    for part in _parts(path):
        header, held = _read(part)
        if found not in (None, header) or tensors.keys() & held.keys():
            raise ValueError(f"{part} is a part of other weights than {path}")
        found, tensors = header, tensors | held
    assert found is not None
    return found, tensors


def _parts(path: Path) -> Iterator[Path]:
    """The files of which this is one."""
    named = _PART.fullmatch(path.name)
    if named is None:
        yield path
        return
    name, _, n = named.groups()
    for i in range(1, max(1, int(n)) + 1):
        yield path.with_name(f"{name}-{i}-of-{n}.safetensors")


def _read(path: Path) -> tuple[Header, dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(
            f"no checkpoint at {path}, expected the folder of a run, or of a record with weights, "
            "or a .safetensors file of saccade"
        )
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
        and isinstance(header.get("scaler") or {}, dict)
        and isinstance(header.get("devices", 1), int)
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
    if lost := [k for k, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]:
        # no neuron fires at what is not a number, so the model would answer, always the same
        raise ValueError(f"{path} holds what is no finite number in {_some(lost)}")
    try:
        missing, foreign = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit model {model.name!r}: {error}") from error
    if missing or foreign:
        lists = {"misses": missing, "has besides": foreign}
        said = [f"{verb} {_some(names)}" for verb, names in lists.items() if names]
        raise ValueError(f"{path} does not fit model {model.name!r}: it {' and '.join(said)}")


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _split_optimizer(
    state: dict[int, dict[str, Any]], keep: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by "optim/<parameter>/<slot>", and the rest as plain numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, slots in state.items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIM}{index}/{slot}"] = _collect(value, keep)
            else:
                numbers.setdefault(str(index), {})[slot] = value
    return tensors, {"numbers": numbers}


def _join_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], header: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {int(i): dict(n) for i, n in header["numbers"].items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        if name.startswith(_OPTIM):
            index, slot = name.removeprefix(_OPTIM).split("/")
            if slot != "step":  # a counter, which belongs to no place of the parameter
                value = spread(value, parameters[int(index)])
            state.setdefault(int(index), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
