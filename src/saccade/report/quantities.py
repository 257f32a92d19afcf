"""Numbers as a reader wants them: three digits and a unit."""

import math

_ENERGY = ((1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"), (1e-9, "nJ"), (1e-12, "pJ"))
_COUNT = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
NONE = "n/a"


def digits(value: float, n: int = 3) -> str:
    """The value to n significant digits, or all of its integer digits: 1,235, 12.3, 0.0123."""
    if value == 0:
        return "0"
    places = max(0, n - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def energy_unit(joules: float) -> tuple[float, str]:
    """The unit (in J, and its name) in which the value has one to three digits before the point."""
    return next((unit for unit in _ENERGY if abs(joules) >= unit[0]), _ENERGY[-1])


def energy(mj: float | None) -> str:
    """An energy given in mJ, in J, mJ, µJ, nJ or pJ."""
    if mj is None:
        return NONE
    size, unit = energy_unit(mj * 1e-3)
    return f"{digits(mj * 1e-3 / size)} {unit}"


def count(value: float | None) -> str:
    """A count with a decimal prefix: 1.23 M."""
    if value is None:
        return NONE
    if abs(value) < 1e3:
        return digits(value)
    size, prefix = next(unit for unit in _COUNT if abs(value) >= unit[0])
    return f"{digits(value / size)} {prefix}"


def percent(fraction: float | None, places: int = 1) -> str:
    """A fraction as a percentage: 98.6 %."""
    return NONE if fraction is None else f"{100 * fraction:.{places}f} %"


def duration(seconds: float | None) -> str:
    """A time span: 45.2 s, 3 min 20 s, 45 min, 2 h 05 min."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest:02d} s"
    if minutes < 60:
        return f"{round(seconds / 60)} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def wilson(fraction: float, n: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a success rate seen in n trials (z 1.96: 95 %).

    E. B. Wilson, J. Am. Stat. Assoc. 22 (1927); holds up near 0 and 1, where the normal one fails.
    """
    centre = (fraction + z * z / (2 * n)) / (1 + z * z / n)
    spread = math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n)) * z / (1 + z * z / n)
    return max(0.0, centre - spread), min(1.0, centre + spread)
