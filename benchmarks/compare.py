"""Ours and theirs on one machine: separate processes that take turns, and their ratios.

python benchmarks/compare.py --environments FOLDER --out FILE.json [--suite cpu] [--rounds 3]

FOLDER is what benchmarks/environment.py made. In each round every library runs each case once, in
an order that turns round by round, so that what else the machine does falls on all of them. A
ratio is that of the medians over all samples; beside it stands the least and the largest ratio
of one round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SMALL = ["--dim", "128", "--depth", "2", "--heads", "8", "--size", "32", "--batch", "64"]
LIBRARIES = ("spikingjelly", "snntorch", "norse")
Case = tuple[str, list[str], tuple[str, ...]]


def spikformers(title: str, sizes: list[str], precisions: tuple[str, ...]) -> list[Case]:
    return [
        (
            f"{title} {mode} {precision}",
            [*sizes, "--mode", mode, "--precision", precision],
            ("spikingjelly",),
        )
        for mode in ("train", "infer")
        for precision in precisions
    ]


def lifs(extra: list[str]) -> list[Case]:
    return [
        (f"lif {mode}", ["--task", "lif", "--mode", mode, *extra], LIBRARIES)
        for mode in ("train", "infer")
    ]


SUITES: dict[str, list[Case]] = {
    "cpu": [
        *spikformers("spikformer 2-128, 32 px", SMALL, ("float32", "bfloat16")),
        *lifs([]),
    ],
    "cuda": [
        *spikformers(
            "spikformer 4-384, 32 px",
            ["--device", "cuda", "--dim", "384", "--depth", "4", "--heads", "12", "--batch", "128"],
            ("float32", "bfloat16"),
        ),
        *spikformers(
            "spikformer 8-512, 224 px",
            [
                *("--device", "cuda", "--dim", "512", "--depth", "8", "--heads", "8"),
                *("--size", "224", "--patch", "16", "--classes", "1000", "--batch", "64"),
            ],
            ("bfloat16",),
        ),
        *lifs(["--device", "cuda", "--elements", str(1 << 25)]),
    ],
}
"""Name of a case, what its runners are told, and who can run it beside us."""


def command(library: str, environments: Path | None, site: Path | None) -> list[str]:
    """Interpreter and script of a runner."""
    if library == "ours":
        return [sys.executable, str(HERE / "ours" / "run.py")]
    script = str(HERE / library / "run.py")
    if site is not None:
        return [sys.executable, script, "--site", str(site)]
    if environments is None:
        raise SystemExit("expected --environments FOLDER or --site FOLDER")
    return [str(environments / library / "bin" / "python"), script]


def run(words: list[str]) -> dict[str, Any]:
    """One process; its environment is ours without the path to our sources where it is theirs."""
    environment = dict(os.environ)
    if words[0] != sys.executable:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(case: Case, libraries: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one case."""
    title, words, able = case
    who = ["ours", *(name for name in libraries if name in able)]
    rounds: list[dict[str, dict[str, Any]]] = []
    for i in range(args.rounds):
        order = who[i % len(who) :] + who[: i % len(who)]
        more = [*words, "--n", str(args.n), *args.more]
        rounds.append(
            {name: run([*command(name, args.environments, args.site), *more]) for name in order}
        )
    medians = {
        name: statistics.median(s for r in rounds for s in r[name]["seconds"]) for name in who
    }
    return {
        "case": title,
        "told": [*words, *args.more],
        "median_s": medians,
        "ratio": {name: medians[name] / medians["ours"] for name in who[1:]},
        "ratio_of_rounds": {name: spread(rounds, name) for name in who[1:]},
        "rounds": rounds,
    }


def spread(rounds: list[dict[str, dict[str, Any]]], name: str) -> list[float]:
    """Least and largest ratio of the medians of one round."""
    ratios = [
        statistics.median(r[name]["seconds"]) / statistics.median(r["ours"]["seconds"])
        for r in rounds
    ]
    return [min(ratios), max(ratios)]


def line(found: dict[str, Any]) -> str:
    """One row of the table."""
    parts = [f"{found['case']:<36} ours {found['median_s']['ours'] * 1e3:9.1f} ms"]
    for name, ratio in found["ratio"].items():
        low, high = found["ratio_of_rounds"][name]
        parts.append(f"{name} takes {ratio:.2f} times as long ({low:.2f} to {high:.2f})")
    return ", ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--site", type=Path, help="unpacked wheels, for this interpreter")
    parser.add_argument("--suite", default="cpu", choices=list(SUITES))
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n", type=int, default=5, help="samples of a round")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("more", nargs="*", help="behind --: more for every runner")
    args = parser.parse_args()
    cases = [case for case in SUITES[args.suite] if args.only in case[0]]
    if not cases:
        parser.error(f"got --only {args.only!r}, expected a part of a name in {args.suite}")
    found = []
    for case in cases:
        found.append(compare(case, args.libraries, args))
        sys.stdout.write(line(found[-1]) + "\n")
        sys.stdout.flush()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    beside = args.out.with_name(f".{args.out.name}.tmp")
    beside.write_text(json.dumps({"suite": args.suite, "cases": found}, indent=2) + "\n")
    beside.replace(args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
