"""What there is, in words: for `saccade list`, `show` and `doctor`, and for the docs."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from saccade._registry import Registry, keywords, nearest
from saccade._sources import Equation, Source
from saccade.analysis import explain
from saccade.attention import ATTENTION, Site, SpikingAttention, install
from saccade.bench import example_on
from saccade.bench.settings import optional_versions
from saccade.data import DATA, data_root
from saccade.models import MODELS, ModelEntry, create_model, resolve, sources_of
from saccade.nn import NEURON, STEM, Stem
from saccade.nn.neurons import EQUATIONS as NEURON_EQUATIONS
from saccade.nn.pmsn import EQUATIONS as PMSN_EQUATIONS
from saccade.nn.released import EQUATIONS as RELEASED_EQUATIONS
from saccade.ops import OPS, SURROGATE
from saccade.train.optim import OPTIMIZER
from saccade.train.outcome import hardware, versions
from saccade.train.recipe import find_recipe, list_recipes, load_recipe
from saccade.train.schedule import SCHEDULE
from saccade.train.tasks import TASK

Rows = list[dict[str, str]]


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _recipe_rows() -> dict[str, str]:
    return {name: load_recipe(path).about for name, path in list_recipes().items()}


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "models": lambda: {n: MODELS[n].about for n in MODELS},
    "attention": lambda: {n: _first_line(ATTENTION[n]) for n in ATTENTION},
    "neurons": lambda: {n: NEURON[n].about for n in NEURON},
    "recipes": _recipe_rows,
    "tasks": lambda: {n: _first_line(TASK[n]) for n in TASK},
    "optimizers": lambda: {n: _first_line(OPTIMIZER[n]) for n in OPTIMIZER},
    "schedules": lambda: {n: _first_line(SCHEDULE[n]) for n in SCHEDULE},
    "data": lambda: {n: _first_line(DATA[n]) for n in DATA},
    "surrogates": lambda: {
        n: f"alpha {SURROGATE[n].alpha:g}, {SURROGATE[n].source}" for n in SURROGATE
    },
}


def list_kind(kind: str, pattern: str = "*") -> Rows:
    """Name and one line about each thing of a kind that matches a shell pattern.

    Raises:
        ValueError: for an unknown kind, naming the nearest.
    """
    from fnmatch import fnmatchcase

    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; {nearest(kind, list(KINDS))}")
    rows = KINDS[kind]().items()
    return [{"name": name, "about": about} for name, about in rows if fnmatchcase(name, pattern)]


def describe_name(name: str) -> str:
    """What `saccade show` prints of a model, a recipe, or a part by its name.

    Raises:
        ValueError: for an unknown name, naming the nearest.
    """
    if name in MODELS:
        return describe_model(name)
    if name in ATTENTION:
        return describe_attention(name)
    parts: list[Registry[Any]] = [NEURON, TASK, OPTIMIZER, SCHEDULE]
    for registry in parts:
        if name in registry:
            options = ", ".join(keywords(registry[name])) or "none"
            return f"{name}: {inspect.getdoc(registry[name])}\n\nOptions: {options}"
    if name in (recipes := list_recipes()):
        return recipes[name].read_text(encoding="utf-8").rstrip()
    known = [*MODELS, *ATTENTION, *(n for registry in parts for n in registry), *recipes]
    raise ValueError(f"nothing is called {name!r}; {nearest(name, known)}")


def describe_model(name: str) -> str:
    """Structure, parameters, paper and published results of a model."""
    entry, c = MODELS[name], MODELS[name].config
    model = create_model(name)
    sizes = ", ".join(map(str, model.frame))
    lines = [
        f"{name}: {entry.about}",
        "",
        "Structure",
        f"  input       [B, {sizes}] shown for T={c.T} steps, or [T, B, {sizes}]",
        *(f"  {part:<11} {text}" for part, text in model.structure().items()),
        "",
        "Parameters",
        *(f"  {part:<11} {_count(module):>12,}" for part, module in model.named_children()),
        f"  {'all':<11} {_count(model):>12,}",
        "",
        *_paper_lines(entry),
    ]
    return "\n".join(lines)


def describe_paths(name: str) -> str:
    """Which variants a model runs on this machine: a training pass, then inference.

    Raises:
        ValueError: for an unknown model, naming the nearest.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create_model(name).to(device)
    x = torch.rand(1, *model.frame, device=device)
    pages = [str(explain(model.train(), x))]
    with torch.no_grad():
        pages.append(str(explain(model.eval(), x)))
    return "\n\n".join(pages)


def _paper_lines(entry: ModelEntry) -> list[str]:
    s = entry.source
    lines = ["Paper", f"  {s.title}. {s.venue} {s.year}. {s.url}", "", "Published results"]
    lines += [f"  {r.dataset:<18} {r.metric:<12} {r.value:g} {r.note}" for r in entry.results]
    if not entry.results:
        lines.append("  none")
    lines.append("  (what the authors report; measured here: see records/)")
    return [*lines, "", entry.note] if entry.note else lines


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def describe_attention(name: str) -> str:
    """Equations, options, cost and source of an attention."""
    cls: type[SpikingAttention] = ATTENTION[name]
    s = cls.source
    lines = [
        f"{name}: {inspect.getdoc(cls)}",
        "",
        "Equations",
        *(f"  {e.name:<8} {e.text}" for e in cls.equations),
        "",
        f"Kind {cls.kind}; {causal_in_words(name)} in time; compared with "
        f"golden files: {cls.golden}",
        f"Options: {', '.join(keywords(cls))}",
        f"Paper: {s.title}. {s.venue} {s.year}. {s.url}",
    ]
    return "\n".join(lines)


def causal_in_words(name: str) -> str:
    """Whether a step hears earlier steps alone; and the preset that makes it so, where one does."""
    cls = ATTENTION[name]
    if cls.causal or "preset" not in keywords(cls):
        return "causal" if cls.causal else "not causal"
    site = Site(dim=64, heads=8, T=4, grid=(8, 8))
    try:
        paper = install(site, {"name": name, "preset": "paper"})
    except ValueError:  # its presets have other names
        return "not causal"
    return "not causal, but with preset 'paper'," if paper.causal else "not causal"


def cite(names: Sequence[str]) -> str:
    """BibTeX of what models, mechanisms, stems, recipes or runs rest on, each source once.

    Raises:
        ValueError: for an unknown name, naming the nearest.
    """
    found: dict[str, Source] = {}
    for name in names:
        for source in _sources_of(name):
            found.setdefault(source.key, source)
    return "\n\n".join(source.bibtex() for source in found.values())


def _sources_of(name: str) -> list[Source]:
    if name in ATTENTION:
        return [ATTENTION[name].source]
    if name in STEM:
        return [STEM[name].source]
    if name in MODELS:
        return sources_of(name, resolve(name, {}))
    try:
        recipe = load_recipe(find_recipe(name))
    except ValueError:
        known = [*MODELS, *ATTENTION, *STEM, *list_recipes()]
        raise ValueError(f"nothing is called {name!r}; {nearest(name, known)}") from None
    options = {k: v for k, v in recipe.model.items() if k != "name"}
    return sources_of(recipe.model["name"], resolve(recipe.model["name"], options))


def all_equations() -> list[Equation]:
    """Every equation that the code declares: neurons, stems, attention."""
    found = [*NEURON_EQUATIONS, *RELEASED_EQUATIONS, *PMSN_EQUATIONS]
    classes: list[type[Stem] | type[SpikingAttention]] = [STEM[name] for name in STEM]
    for cls in classes + [ATTENTION[name] for name in ATTENTION]:
        found += [e for e in cls.equations if e not in found]
    return found


def diagnosis() -> dict[str, dict[str, str]]:
    """What `saccade doctor` prints."""
    root = data_root()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {k: str(v) for k, v in hardware(device).items() if v is not None}
    if device.type == "cpu":
        facts["cuda"] = "not available: " + (
            "this torch is built without it" if torch.version.cuda is None else "no device found"
        )
    return {
        "versions": versions() | _optional(),
        "hardware": facts,
        "data": {"folder": f"{root} ({_presence(root)})"},
        "fast paths (on each op's example)": {
            f"{op.name}: {variant}": verdict
            for op in OPS.values()
            for variant, verdict in op.explain(*example_on(op, device)).items()
        },
    }


def _presence(root: Path) -> str:
    if not root.is_dir():
        return "not there yet; data sets are downloaded into it"
    inside = sorted(p.name for p in root.iterdir() if p.is_dir())
    return "holds " + ", ".join(inside) if inside else "empty"


def _optional() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package, extra in {
        "numba": "cpu",
        "matplotlib": "report",
        "jinja2": "report",
        "scikit-learn": "demo",
        "pillow": "demo",
    }.items():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = f'missing: pip install "saccade[{extra}]"'
    kernels = optional_versions("triton", "numba")
    return found | {name: kernels.get(name, "not installed") for name in ("triton", "numba")}
