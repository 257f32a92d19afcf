"""Two processes that wait for work, as two devices of a run on a CPU."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

LIMIT = 90.0
"""Seconds after which a process is taken to hang."""


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun writes for a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _serve(pipe: Connection, own: dict[str, str]) -> None:
    os.environ.update(own)
    import torch

    torch.set_num_threads(1)
    while (task := pipe.recv()) is not None:
        function, args = task
        try:
            pipe.send((function(*args), None))
        except BaseException:  # the test raises it: see `Ranks.__call__`
            pipe.send((None, traceback.format_exc()))


class Ranks:
    """Processes that form one group; they live until `close`, and never longer than the tests."""

    def __init__(self, world: int = 2) -> None:
        context, port = multiprocessing.get_context("spawn"), free_port()
        self.pipes, self.processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            own = environment(rank, world, port)
            process = context.Process(target=_serve, args=(there, own), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What the function returns in each process, called in all of them at once."""
        for pipe in self.pipes:
            pipe.send((function, args))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(LIMIT):
                self.close()
                raise AssertionError(f"process {rank} hangs in {function.__name__}")
            answers.append(pipe.recv())
        for rank, (_, error) in enumerate(answers):
            assert error is None, f"process {rank}: {error}"
        return [result for result, _ in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
