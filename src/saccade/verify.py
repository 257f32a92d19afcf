"""Compare our modules with golden files: what official code computed, in float64.

A file passes when every array of it agrees: outputs, spikes of inner neurons, gradients of the
input and of all parameters, batch-norm statistics after a training step. Its family's rebuild
recipe and key map are declared beside the mechanism (`saccade._golden`).
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor, nn

import saccade.models  # noqa: F401  (declares the families)
from saccade._golden import GOLDEN, Arrays, Golden
from saccade._registry import nearest
from saccade.attention import ATTENTION, check_attention
from saccade.nn import Neuron, on_spikes

PROMISES = "promises"
"""Family of verdicts on an attention."""
TOLERANCE = 1e-9
"""An array fails where max|ours - file| exceeds this times max(1, max|file|)."""

_NAME = re.compile(r"(?P<family>.+)_(?P<case>(?:[a-z]|\d+)(?:_(?:dvs|kd|train|cifar))?|released)")
_NOT_COMPARED = re.compile(r"input|proj.*|state/.+")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison of one file found.

    `max_error` is the largest max|ours - file| / max(1, max|file|) and `worst` its array;
    `max_error` is None where that array could not be compared; `reason` is empty where the file
    passed.
    """

    file: str
    family: str
    case: str
    ok: bool
    max_error: float | None = None
    worst: str | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def verify(files: Iterable[str | Path]) -> list[Verdict]:
    """Compare each golden file; a broken or unknown one is a verdict, not an exception.

    The name of an attention gives a verdict for each promise of `saccade.check_attention`.
    """
    verdicts: list[Verdict] = []
    for file in files:
        if file in ATTENTION:
            verdicts += _promises(str(file))
        else:
            verdicts.append(verify_file(Path(file)))
    return verdicts


def in_words(verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each, and one on all of them, with rich's markup."""
    lines = []
    for v in verdicts:
        promised = v.family == PROMISES
        error = "" if v.max_error is None else f"max error {v.max_error:.1e} in {v.worst}"
        mark = f"[green]{'kept ' if promised else 'equal'}[/]" if v.ok else "[red]fails[/]"
        what = f"{v.file}: {v.case}" if promised else Path(v.file).name
        lines.append(f"{mark}  {escape(what):<40} {error}  {escape(v.reason)}".rstrip())
    for what, some in (("files equal", False), ("promises kept", True)):
        if asked := [v for v in verdicts if (v.family == PROMISES) is some]:
            lines.append(f"{sum(v.ok for v in asked)} of {len(asked)} {what}")
    return lines


def _promises(name: str) -> list[Verdict]:
    found = check_attention(name).items()
    return [
        Verdict(file=name, family=PROMISES, case=text, ok=not wrong, reason=wrong)
        for text, wrong in found
    ]


def verify_file(path: Path) -> Verdict:
    """Compare one golden file."""
    match = _NAME.fullmatch(path.stem)
    family, case = (match["family"], match["case"]) if match else (path.stem, "")
    try:
        if family not in GOLDEN:
            raise ValueError(f"unknown family {family!r}; {nearest(family, GOLDEN.list())}")
        arrays, config = read_golden(path)
        pairs = compute(GOLDEN[family], arrays, config)
        errors = {name: _error(pairs.pop(name, None), arrays[name]) for name in _compared(arrays)}
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        reason = f"no {error} in the file" if isinstance(error, KeyError) else str(error)
        return Verdict(file=str(path), family=family, case=case, ok=False, reason=reason)
    return _judge(path, family, case, errors)


def _judge(path: Path, family: str, case: str, errors: dict[str, tuple[float, str]]) -> Verdict:
    if not errors:
        reason = "the file holds no array to compare"
        return Verdict(file=str(path), family=family, case=case, ok=False, reason=reason)
    worst = max(errors, key=lambda name: errors[name][0])
    faults = [f"{name}: {why}" for name, (_, why) in errors.items() if why]
    return Verdict(
        file=str(path),
        family=family,
        case=case,
        ok=not faults,
        max_error=errors[worst][0] if math.isfinite(errors[worst][0]) else None,
        worst=worst,
        reason="; ".join(faults),
    )


def read_golden(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Arrays (floats as float64) and config of a golden file.

    Raises:
        ValueError: where the file is not a readable .npz of plain arrays with a JSON config.
    """
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as z:
            raw = {name: z[name] for name in z.files}
        config = json.loads(str(raw.pop("config")))
        if not isinstance(config, dict):
            raise ValueError(f"its config is a {type(config).__name__}, expected a mapping")
    except Exception as error:  # zipfile, zlib, numpy and json each have their own
        raise ValueError(f"{path.name} is not a golden file: {error}") from error
    arrays = {name: torch.from_numpy(np.array(a)) for name, a in raw.items()}
    return {n: a.double() if a.is_floating_point() else a for n, a in arrays.items()}, config


def compute(family: Golden, arrays: Arrays, config: dict[str, Any]) -> dict[str, Tensor]:
    """Our value of each array that the family can compute, under the file's names."""
    module = family.build(config, arrays).double()
    state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
    module.load_state_dict(family.keys.load(state, module.state_dict()))
    module.train(config.get("mode") == "train")
    ours = family.extras(module, arrays, config)
    x = arrays["input"].clone().requires_grad_()
    with _listening(module, family, arrays, config) as mids:
        y = family.outward(family.call(module, family.inward(x, config), config), config)
    ours |= mids | {"output": y.detach()}
    _match_shapes("output", y, arrays["output"])
    if not family.backward:
        return ours
    torch.autograd.backward((y * arrays["proj"]).sum())
    if x.grad is not None:
        ours |= family.input_grads(x.grad)
    return ours | _by_official_key(module, family, arrays)


@contextmanager
def _listening(
    module: nn.Module, family: Golden, arrays: Arrays, config: dict[str, Any]
) -> Iterator[dict[str, Tensor]]:
    """Collect the spikes of the neurons that the file names, laid out as it does."""
    trains: dict[str, list[Tensor]] = {}
    hooks = []
    for name in [k for k in arrays if k.startswith("mid/")]:
        ours = family.neurons.rename(name.removeprefix("mid/"))
        neuron = module.get_submodule(ours or "")
        assert isinstance(neuron, Neuron)
        hooks.append(on_spikes(neuron, trains.setdefault(name, []).append))
    found: dict[str, Tensor] = {}
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    lay_out = family.mid_outward or (lambda x, config, name: x)
    for name, parts in trains.items():
        found[name] = lay_out(torch.cat(parts), config, name.removeprefix("mid/"))


def _by_official_key(module: nn.Module, family: Golden, arrays: Arrays) -> dict[str, Tensor]:
    """Parameter gradients and states after the step, under the file's names."""
    parameters, states = dict(module.named_parameters()), module.state_dict()
    ours: dict[str, Tensor] = {}
    for name, like in arrays.items():
        prefix, _, key = name.partition("/")
        if prefix not in ("grad", "grad_param", "state_after"):
            continue
        mine = family.keys.rename(key)
        if mine is None:
            continue
        value = states.get(mine) if prefix == "state_after" else parameters[mine].grad
        if value is not None and value.numel() == like.numel():
            ours[name] = value.reshape(like.shape)
    return ours


def _compared(arrays: Arrays) -> list[str]:
    return [name for name in arrays if not _NOT_COMPARED.fullmatch(name)]


def _match_shapes(name: str, ours: Tensor, file: Tensor) -> None:
    if ours.shape != file.shape:
        raise ValueError(f"{name}: our shape is {list(ours.shape)}, the file's {list(file.shape)}")


def _error(ours: Tensor | None, file: Tensor) -> tuple[float, str]:
    """Scaled error, and why it is too large ("" where it is not)."""
    if ours is None:
        return float("inf"), "our module computes no such array"
    if ours.shape != file.shape:
        return float("inf"), f"our shape is {list(ours.shape)}, the file's {list(file.shape)}"
    ours, file = ours.double(), file.double()
    if file.numel() == 0:
        return 0.0, ""
    error = ((ours - file).abs().max() / file.abs().max().clamp(min=1)).item()
    if not error <= TOLERANCE:  # also where it is not a number
        return error if error == error else float("inf"), f"error {error:.3g} above {TOLERANCE:g}"
    binary = bool(((file == 0) | (file == 1)).all())
    if binary and not torch.equal(ours, file):
        return error, "0/1 values differ"
    return error, ""
