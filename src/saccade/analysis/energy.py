"""From counted operations to millijoules; every constant has a name and a source."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Cost of one operation in pJ.

    `ac_pj` is one addition, `mac_pj` one multiply-accumulate.
    """

    ac_pj: float
    mac_pj: float
    note: str

    def millijoules(self, sops: float, macs: float) -> float:
        """Energy in mJ of so many additions and multiply-accumulates."""
        return (self.ac_pj * sops + self.mac_pj * macs) * 1e-9


HOROWITZ_45NM = Energy(
    ac_pj=0.9,
    mac_pj=4.6,
    note="32-bit floating point at 45 nm (Horowitz, ISSCC 2014), arithmetic only: no memory, no "
    "membrane updates",
)
"""The constants that Spikformer and most papers after it use."""
