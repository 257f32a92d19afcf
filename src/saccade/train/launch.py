"""One process for each device of this machine, watched by a process that does nothing else.

The processes find in their environment what `torchrun` would have written there, so that there is
one kind of run, whoever started it.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

GRACE = 5.0
"""Seconds that the others have to end by themselves once one process has failed."""
LOST = 75
"""Exit status of a process that stopped because another was gone; EX_TEMPFAIL of sysexits.h."""
_WATCHED = "SACCADE_WATCHED"


class Lost(RuntimeError):  # noqa: N818  (what happened, not whose fault it is)
    """Another process of the run is gone."""


def launched() -> bool:
    """Whether this process is one of several: of `launch`, or of torchrun."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """The number of this process among all of the run; 0 where it is the only one."""
    return int(os.environ["RANK"]) if launched() else 0


def size_of(devices: int | None, nodes: int | None) -> tuple[int, int]:
    """Devices on each machine and machines, as asked for or as torchrun has it.

    Raises:
        ValueError: for numbers below 1, or others than those of torchrun.
    """
    for name, value in (("devices", devices), ("nodes", nodes)):
        if value is not None and value < 1:
            raise ValueError(f"got --{name} {value}, expected 1 or more")
    if not launched():
        return devices or 1, nodes or 1
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    found = here, int(os.environ["WORLD_SIZE"]) // here
    for name, asked, got in zip(("devices", "nodes"), (devices, nodes), found, strict=True):
        if asked not in (None, got):
            raise ValueError(
                f"got --{name} {asked}, but torchrun started {got}; leave the flag out, torchrun's "
                "own --nproc-per-node and --nnodes say how many there are"
            )
    return found


def launch(words: Sequence[str], *, devices: int, nodes: int) -> int:
    """Run `python -m saccade WORDS` once for each device of this machine, until all have ended.

    An interrupt is handed to all of them once. Where one fails, the others are stopped.

    Args:
        words: of the command line.
        devices: processes on this machine.
        nodes: machines; with several, NODE_RANK and MASTER_ADDR (and MASTER_PORT) must be set.

    Returns:
        0, or 130 where they were interrupted.

    Raises:
        ValueError: where the environment does not say which of several machines this is.
        Lost: where a process failed, with what it said, unless the first one said it already.
    """
    shared = _environment(devices, nodes)
    with ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(devices)]
        children = [
            stack.enter_context(_child(words, shared, place, errors[place] if place else None))
            for place in range(devices)
        ]
        with _forwarding(children) as asked:
            first = _wait(children)
        status = [child.poll() for child in children]
        return _explain(status, first, errors, bool(asked)) if any(s != 0 for s in status) else 0


def _environment(devices: int, nodes: int) -> dict[str, str]:
    if nodes == 1:
        node, address, port = "0", "127.0.0.1", str(_free_port())
    elif not (missing := [n for n in ("NODE_RANK", "MASTER_ADDR") if not os.environ.get(n)]):
        node, address = os.environ["NODE_RANK"], os.environ["MASTER_ADDR"]
        port = os.environ.get("MASTER_PORT", "29500")
    else:
        raise ValueError(
            f"got --nodes {nodes}, but {' and '.join(missing)} is not set; run the same command on "
            f"each machine with NODE_RANK=0..{nodes - 1} and MASTER_ADDR=<the first machine>, or "
            "use torchrun"
        )
    cores = os.cpu_count() or 1
    return {
        "GROUP_RANK": node,
        "WORLD_SIZE": str(devices * nodes),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        # else each process would start a thread for every core
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // devices))),
        "TORCHELASTIC_RUN_ID": "saccade",
        _WATCHED: "1",
    }


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def _child(
    words: Sequence[str], shared: dict[str, str], place: int, errors: IO[bytes] | None
) -> Iterator[subprocess.Popen[bytes]]:
    number = int(shared["GROUP_RANK"]) * int(shared["LOCAL_WORLD_SIZE"]) + place
    own = {"RANK": str(number), "LOCAL_RANK": str(place)}
    process = subprocess.Popen(
        [sys.executable, "-m", "saccade", *words],
        env=os.environ | shared | own,
        stdin=subprocess.PIPE,  # open as long as this process lives: see `follow`
        stderr=errors,
        # out of reach of the terminal's own Ctrl-C, which `_forwarding` hands on
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def _forwarding(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    asked: list[int] = []

    def forward(number: int, frame: object) -> None:
        asked.append(number)
        for child in children:
            child.send_signal(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all have ended, or some time after one has failed; which one was the first to fail."""
    first, deadline = -1, float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        failed = [place for place, child in enumerate(children) if child.returncode]
        if failed and first < 0:
            # a process that lost another fails as a consequence, however soon it is noticed
            first, deadline = failed[0], time.monotonic() + GRACE
        time.sleep(0.05)
    return first


def _explain(
    status: Sequence[int | None], first: int, errors: Sequence[IO[bytes]], asked: bool
) -> int:
    """The exit status of the whole, or an error that says which process failed and how."""
    if asked or all(s == 130 for s in status):
        return 130
    failed = [place for place, s in enumerate(status) if s not in (0, LOST, None)]
    blamed = first if first in failed else (failed or [0])[0]
    code, which = status[blamed] or 0, f"process {blamed} of {len(status)}"
    if code < 0:
        raise Lost(
            f"{which} was killed by {signal.Signals(-code).name}; what was saved last is kept, "
            "and the same command with --resume goes on from there"
        )
    if blamed == 0:  # it has said why
        return code
    errors[blamed].seek(0)
    said = errors[blamed].read().decode(errors="replace").strip()
    raise Lost(f"{which} ended with status {code}: {said}")


def follow() -> None:
    """Let this process stop, as if by SIGTERM, when the one that launched it is gone."""
    if _WATCHED not in os.environ:
        return

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)  # until the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(6 * GRACE)  # to save; a process that hangs is ended
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()
