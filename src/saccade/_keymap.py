"""Translate the names and shapes of an official checkpoint into ours, strictly both ways."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from saccade._registry import nearest


@dataclass(frozen=True)
class KeyMap:
    """Official key -> our key.

    Each rule is (pattern, replacement) as in `re.fullmatch` and `Match.expand`; the first that
    matches wins. `drops` is (pattern, reason): keys that the official forward never reads.
    Shapes may differ by axes of length 1 only (Linear, Conv1d and Conv2d of kernel 1 are one
    map; a depth-wise kernel has an input axis of length 1 or none).
    """

    rules: tuple[tuple[str, str], ...] = ()
    drops: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: "KeyMap") -> "KeyMap":
        return KeyMap(self.rules + other.rules, self.drops + other.drops)

    def under(self, official: str, ours: str) -> "KeyMap":
        """The same table for a module that sits deeper; prefixes are a pattern and a template.

        The pattern's groups come first, so the table's own groups are renumbered behind them.
        """
        shift = re.compile(official).groups
        return KeyMap(
            tuple((official + p, ours + _renumber(r, shift)) for p, r in self.rules),
            tuple((official + p, reason) for p, reason in self.drops),
        )

    def rename(self, key: str) -> str | None:
        """Our name of an official key, or None where it is dropped.

        Raises:
            ValueError: for a key that the table does not know.
        """
        for pattern, replacement in self.rules:
            if match := re.fullmatch(pattern, key):
                return match.expand(replacement)
        if self.reason(key) is None:
            raise ValueError(f"key {key!r} is not in the key map of this family")
        return None

    def reason(self, key: str) -> str | None:
        """Why an official key is dropped; None where it is kept."""
        return next((why for pattern, why in self.drops if re.fullmatch(pattern, key)), None)

    def load(self, official: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict for our module from an official one.

        Args:
            official: the official state dict.
            ours: the state dict of our module, for names and shapes.

        Raises:
            ValueError: where a key is unknown on either side, missing, doubled, or of a shape
                that does not fit.
        """
        state: dict[str, Tensor] = {}
        for key, value in official.items():
            name = self.rename(key)
            if name is None:
                continue
            if name not in ours:
                raise ValueError(
                    f"official key {key!r} becomes {name!r}, which this model does not have; "
                    + nearest(name, [k for k in ours if k not in state][:8])
                )
            if name in state:
                raise ValueError(f"official key {key!r} would set {name!r} a second time")
            state[name] = _fit(key, value, ours[name])
        if missing := sorted(set(ours) - set(state)):
            raise ValueError(f"the official state holds nothing for {', '.join(missing)}")
        return state


def _renumber(replacement: str, shift: int) -> str:
    return re.sub(r"\\(\d+)", lambda m: f"\\{int(m[1]) + shift}", replacement)


def _fit(key: str, value: Tensor, like: Tensor) -> Tensor:
    """`value` in the shape of `like`; only axes of length 1 may come or go."""
    if value.squeeze().shape != like.squeeze().shape:
        raise ValueError(f"{key!r}: got shape {tuple(value.shape)}, expected {tuple(like.shape)}")
    return value.reshape(like.shape)
