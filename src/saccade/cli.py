"""The command line: `saccade COMMAND --help` explains each command."""

import argparse
import json
import logging
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from saccade._flags import FLAGS, IMPORT, first, same
from saccade._own import import_own
from saccade.train.files import free_folder
from saccade.train.launch import LOST, Lost, follow, launched, rank, size_of
from saccade.train.live import Live

out, err = Console(), Console(stderr=True)
log = logging.getLogger("saccade")
Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parse(argv)
    handler = RichHandler(console=err, show_path=False, show_time=False)
    follow()
    logging.getLogger("saccade").addHandler(handler)
    logging.getLogger("saccade").setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        for name in arguments.imports:
            import_own(name)
        status: int = arguments.command(arguments)
        return status
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        err.print(f"[bold red]saccade: error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
        return LOST if isinstance(error, Lost) and launched() else 1
    finally:
        logging.getLogger("saccade").removeHandler(handler)


def _parse(argv: Sequence[str] | None) -> Arguments:
    """As argparse does, but overrides may also stand behind options."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    flags = [word for word in rest if word.startswith("-") or "=" not in word]
    if flags or (rest and "overrides" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(flags or rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _plain(text: object) -> str:
    """Text that rich prints as it is, whatever brackets it holds."""
    return escape(str(text))


def train(a: Arguments) -> int:
    """Train a recipe, then test it once."""
    from saccade.train import find_recipe, load_recipe

    path = find_recipe(a.recipe)
    recipe = load_recipe(path, a.overrides)
    seeds = _seeds(a) or [recipe.seed]
    results, runs = [], []
    for seed in seeds:
        chosen = replace(recipe, seed=seed)
        if Path(a.recipe).is_dir() and a.resume and a.out is None:
            run = Path(a.recipe)
        else:
            run = _run_folder(a, chosen.name, seed, several=len(seeds) > 1)
        metrics = _train_one(a, chosen, run)
        if metrics is None:
            return 130
        results.append(metrics)
        runs.append(run)
    if len(results) > 1:
        _summarise(a, results, runs)
    return 0


def _train_one(a: Arguments, recipe: Any, run: Path) -> dict[str, Any] | None:
    """The metrics, or None where somebody stopped it."""
    from saccade.train import Interrupted
    from saccade.train import train as train_recipe
    from saccade.train.allocator import keep_freed_memory
    from saccade.train.logs import check_logs, told

    keep_freed_memory()
    devices, nodes = size_of(a.devices, a.nodes)
    logs = check_logs(a.log)
    if devices * nodes > 1 and not launched():
        return _train_many(a, recipe.seed, run, devices, nodes)
    out.quiet = rank() != 0
    title = f"{recipe.name}, seed {recipe.seed}"
    out.print(f"[bold]{_plain(title)}[/] in {_plain(run)}", highlight=False, soft_wrap=True)
    names = ("device", "devices", "nodes", "strategy", "workers", "data_root", "resume")
    options = {name: getattr(a, name) for name in names}
    try:
        with Live(out, _plain(title)) as live, told(live, logs, run, recipe) as progress:
            metrics = train_recipe(recipe, run, progress=progress, **options)
    except Interrupted:
        out.print("stopped; everything is saved. Go on with:", highlight=False)
        out.print(f"  {_resume_command(a, run)}", highlight=False, markup=False, soft_wrap=True)
        return None
    if rank() == 0:
        _write_report(run)
        _print_result(metrics, run)
    return metrics


def _train_many(
    a: Arguments, seed: int, run: Path, devices: int, nodes: int
) -> dict[str, Any] | None:
    """As `_train_one`, by a process for each device; the first of them prints."""
    from saccade.train.launch import launch

    words = [*first(a), "train", a.recipe, *a.overrides, *same(a)]
    words += ["--seed", str(seed), "--out", str(run), *(["--resume"] if a.resume else [])]
    status = launch(words, devices=devices, nodes=nodes)
    if status == 130:
        return None
    if status:
        raise SystemExit(status)
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def _write_report(run: Path) -> None:
    try:
        from saccade.report import write_report

        write_report(run)
    except ImportError as error:
        log.warning("no report was written: %s", error)


def _resume_command(a: Arguments, run: Path) -> str:
    """With everything that is not in the recipe, ready to be pasted into a shell."""
    return shlex.join(["saccade", *first(a), "train", str(run), "--resume", *same(a)])


def _seeds(a: Arguments) -> list[int]:
    if a.seed is not None and a.seeds is not None:
        raise ValueError("got --seed and --seeds, expected one of them")
    if a.seed is not None:
        return [a.seed]
    try:
        seeds = [int(s) for s in a.seeds.split(",")] if a.seeds is not None else []
    except ValueError:
        raise ValueError(f"got --seeds {a.seeds}, expected numbers like 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"got --seeds {a.seeds}, expected each number once")
    return seeds


def _run_folder(a: Arguments, name: str, seed: int, *, several: bool) -> Path:
    """Where a run goes: as told, else runs/<recipe>-s<seed>, with a number where that is taken."""
    if a.out is not None:
        return Path(a.out) / f"s{seed}" if several else Path(a.out)
    first = Path("runs") / f"{name}-s{seed}"
    return first if a.resume else free_folder(first, "recipe.yaml")


def _print_result(metrics: dict[str, Any], run: Path) -> None:
    from saccade.train.outcome import in_words

    seen = run / "report.html"
    rows = in_words(metrics) | {"look at": _plain(seen if seen.exists() else run)}
    for name, value in rows.items():
        out.print(f"  {name:<14} {value}", highlight=False, soft_wrap=True)


def _summarise(a: Arguments, results: list[dict[str, Any]], runs: list[Path]) -> None:
    """Mean and sd, into --out or else into runs/<recipe>-seeds."""
    from saccade.train.files import write_json

    accuracies = [m["test_accuracy"] for m in results]
    mean, sd = statistics.mean(accuracies), statistics.stdev(accuracies)
    summary = {
        "recipe": results[0]["recipe"],
        "seeds": [m["seed"] for m in results],
        "runs": [str(run) for run in runs],
        "test_accuracy": accuracies,
        "mean": mean,
        "sd": sd,
        "train_seconds": [m["train_seconds"] for m in results],
        "versions": results[0]["versions"],
        "hardware": results[0]["hardware"],
    }
    out.print(f"test accuracy {mean:.2%} ± {sd:.2%} (mean and sd of {len(results)} seeds)")
    several = Path("runs") / f"{results[0]['recipe']}-seeds"
    folder = Path(a.out) if a.out is not None else free_folder(several, "summary.json")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "summary.json", summary)
    out.print(f"  in {folder / 'summary.json'}", highlight=False, markup=False, soft_wrap=True)


def _as_json(found: Any) -> int:
    print(json.dumps(found, indent=2))
    return 0


def evaluate(a: Arguments) -> int:
    """Test a trained model once more."""
    from saccade.train.allocator import keep_freed_memory
    from saccade.train.apply import evaluate_run, in_words

    keep_freed_memory()
    options = {name: getattr(a, name) for name in ("data_root", "device", "products")}
    with Live(err, "test") as live:
        result = evaluate_run(Path(a.run), tell=live.test, **options)
    if a.json:
        return _as_json(result)
    for line in in_words(result):
        out.print(line)
    return 0


def predict(a: Arguments) -> int:
    """Name what pictures show."""
    from saccade.train.apply import predict_files

    answers = predict_files(Path(a.run), a.images, top=a.top, invert=a.invert)
    if a.json:
        return _as_json(answers)
    for answer in answers:
        (best, p), *rest = answer["top"]
        after = ", ".join(f"{name} {q:.1%}" for name, q in rest)
        line = f"{_plain(answer['file'])}: [bold]{_plain(best)}[/] {p:.1%}"
        line += f"  ({_plain(after)})" if rest else ""
        out.print(line, highlight=False, soft_wrap=True)
    return 0


def list_names(a: Arguments) -> int:
    """Name what a recipe may ask for."""
    from saccade.catalogue import list_kind

    rows = list_kind(a.kind, a.pattern)
    if a.json:
        return _as_json(rows)
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        out.print(f"[bold]{row['name']:<{width}}[/]  {_plain(row['about'])}", soft_wrap=True)
    if not rows:
        out.print(f"no {a.kind} match {a.pattern!r}", markup=False)
    return 0


def show(a: Arguments) -> int:
    """Explain a model, an attention or a recipe."""
    from saccade.catalogue import describe_name, describe_paths

    text = describe_paths(a.name) if a.paths else describe_name(a.name)
    out.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def cite(a: Arguments) -> int:
    """Print BibTeX."""
    from saccade.catalogue import cite as bibtex

    out.print(bibtex(a.names), highlight=False, markup=False, soft_wrap=True)
    return 0


def verify(a: Arguments) -> int:
    """Compare with golden files of official code, or check an attention."""
    from saccade.verify import in_words
    from saccade.verify import verify as compare

    verdicts = compare(a.files)
    if a.json:
        print(json.dumps([v.as_dict() for v in verdicts], indent=2))
    else:
        for line in in_words(verdicts):
            out.print(line, highlight=False, soft_wrap=True)
    return 0 if all(v.ok for v in verdicts) else 1


def convert(a: Arguments) -> int:
    """Turn an official checkpoint into ours."""
    from saccade.convert import convert as load_official
    from saccade.train import save_weights

    converted = load_official(Path(a.checkpoint), a.model)
    save_weights(Path(a.out), converted.model, {})
    for reason in sorted(set(converted.dropped.values())):
        keys = [k for k, why in converted.dropped.items() if why == reason]
        line = f"left behind {len(keys)} keys such as {keys[0]}: {reason}"
        out.print(line, highlight=False, markup=False, soft_wrap=True)
    done = f"wrote {a.out}; load it with saccade.load({a.out!r})"
    out.print(done, highlight=False, markup=False, soft_wrap=True)
    return 0


def report(a: Arguments) -> int:
    """Write the report page of a run again."""
    from saccade.report import write_figures, write_report

    written = [write_report(Path(a.run))]
    written += write_figures(Path(a.run), Path(a.figures)) if a.figures else []
    for path in written:
        out.print(str(path), highlight=False, markup=False, soft_wrap=True)
    return 0


def bench(a: Arguments) -> int:
    """Time what equals its reference."""
    from saccade.bench import draw
    from saccade.bench.command import benchmark

    result = benchmark(a)
    if a.out is not None:
        result.write(path := Path(a.out))
        if a.scale:
            draw(result, path.with_suffix(".png"))
    if a.json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        out.print(str(result), highlight=False, markup=False, soft_wrap=True)
    return 0


def doctor(a: Arguments) -> int:
    """Say what is installed and which fast paths are active, and why."""
    from saccade.catalogue import diagnosis

    facts = diagnosis()
    if a.json:
        return _as_json(facts)
    for title, rows in facts.items():
        out.print(f"[bold]{title}[/]")
        for name, value in rows.items():
            out.print(f"  {name:<28} {value}", highlight=False, markup=False, soft_wrap=True)
    return 0


COMMANDS: dict[str, Callable[[Arguments], int]] = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "list": list_names,
    "show": show,
    "cite": cite,
    "verify": verify,
    "convert": convert,
    "report": report,
    "bench": bench,
    "doctor": doctor,
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from saccade import __version__

    parser = argparse.ArgumentParser(
        prog="saccade",
        description="Attention for spiking neural networks. Begin with: saccade train digits",
    )
    parser.add_argument("--version", action="version", version=f"saccade {__version__}")
    parser.add_argument("--import", **IMPORT)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (about, options) in FLAGS.items():
        sub = commands.add_parser(
            name,
            help=about.splitlines()[0],
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for flags, settings in options:
            sub.add_argument(*flags, **settings)
        sub.set_defaults(command=COMMANDS[name])
    return parser
