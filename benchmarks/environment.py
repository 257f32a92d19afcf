"""An environment of its own for each library that ours is compared with.

python benchmarks/environment.py FOLDER [spikingjelly snntorch norse]

FOLDER/<name> becomes a virtual environment with the versions of benchmarks/<name>/requirements.txt;
FOLDER/<name>/installed.txt lists everything that is then in it. Needs network, or pip's wheels.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = ("spikingjelly", "snntorch", "norse")


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def make(environment: Path, requirements: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(python_of(environment)), "-m", "pip", "--disable-pip-version-check"]
    for line in requirements.read_text(encoding="utf-8").splitlines():
        # one by one: a package without its dependencies has its own line
        if words := line.partition("#")[0].split():
            subprocess.run([*pip, "install", "--quiet", *words], check=True)
    installed = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    (environment / "installed.txt").write_text(installed, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(LIBRARIES)} (default: all)")
    args = parser.parse_args()
    for name in args.names or LIBRARIES:
        if name not in LIBRARIES:
            parser.error(f"got {name!r}, expected names of {', '.join(LIBRARIES)}")
        make(args.folder / name, HERE / name / "requirements.txt")
        sys.stdout.write(f"{python_of(args.folder / name)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
