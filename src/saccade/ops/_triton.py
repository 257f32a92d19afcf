"""What every Triton kernel of the library shares: whether it can run, and how it is launched.

Triton comes with the CUDA builds of torch; without it every op keeps its other variants. With
TRITON_INTERPRET=1 in the environment, before the first import, kernels run on CPU tensors, slowly:
so they are tested where there is no GPU.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, library, nn

AVAILABLE = find_spec("triton") is not None
MISSING = "Triton is not installed; CUDA builds of torch bring it"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FLAGS: dict[str, Any] = {"enable_fp_fusion": False}
"""For kernels that fire: a contracted multiply-add would round otherwise than the reference."""
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TRACED: ContextVar[bool] = ContextVar("traced", default=False)
_REHEARSED: ContextVar[list[Any] | None] = ContextVar("rehearsed", default=None)
MAX_STEPS = 32
"""T up to which a kernel unrolls its steps: their membranes stay in registers."""


def refuses(x: Tensor, steps: int, dtypes: tuple[torch.dtype, ...] = DTYPES) -> str | None:
    """Why no kernel can run on `x` for so many steps, or None where it can."""
    if x.device.type != "cuda":
        return f"the tensors are on {x.device.type}, not cuda"
    if x.dtype not in dtypes:
        return f"{str(x.dtype).removeprefix('torch.')} is left to torch"
    if steps > MAX_STEPS:
        return f"T={steps} is more than the {MAX_STEPS} steps that fit in registers"
    return None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run a kernel, so that torch.compile and torch.export see through it where they look."""
    rehearsed = _REHEARSED.get()
    if rehearsed is not None:
        rehearsed.append(kernel.warmup(*args, grid=grid, **constants))
        return
    seen = library.wrap_triton(kernel) if _TRACED.get() else kernel
    seen[grid](*args, **constants)


def rehearse(run: Callable[[], object], model: nn.Module, device: torch.device) -> None:
    """Compile the kernels that `run` would launch, all at the same time, and launch none of them.

    As they are first launched they are compiled one after the other. Whatever a kernel would have
    written holds arbitrary numbers inside `run`, so it must do nothing that has to be right, such
    as a step of an optimiser. Gradients that it leaves are to be cleared.

    Where cuDNN searches for its fastest algorithms `run` is called twice: first without, so that
    all kernels are asked for at once, then with, while they are being compiled.

    Args:
        run: forward passes of the model, and backward passes, which stay in this thread.
        model: its buffers, such as running statistics, are put back.
        device: that of the model; on any but a CUDA device nothing is done.
    """
    if device.type != "cuda" or not AVAILABLE or INTERPRETED:
        return
    from triton import AsyncCompileMode
    from triton.runtime import driver

    def build(kernel: Any) -> None:
        torch.cuda.set_device(device)
        driver.active.launcher_cls(kernel.src, kernel.metadata)

    kernels: list[Any] = []
    kept = {buffer: buffer.clone() for buffer in model.buffers()}
    with ThreadPoolExecutor(max(1, os.cpu_count() or 1)) as pool:
        token = _REHEARSED.set(kernels)
        try:
            with AsyncCompileMode(pool), torch.autograd.set_multithreading_enabled(False):
                if torch.backends.cudnn.benchmark:
                    with _unsearched():
                        run()
                run()
        finally:
            _REHEARSED.reset(token)
            for buffer, before in kept.items():
                buffer.copy_(before)
        compiled = [k.result() if hasattr(k, "result") else k for k in kernels]
        _load(compiled, build, pool)


@contextmanager
def _unsearched() -> Iterator[None]:
    """Inside this block cuDNN takes the algorithm that it thinks best, at once."""
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = True


def _load(kernels: list[Any], build: Callable[[Any], None], pool: Executor) -> None:
    """Load kernels and the C functions that launch them, which Triton may compile for each.

    Only compiling is done side by side, and what is loaded thereby is thrown away: all these
    modules bear one name, and where two are loaded at the same time Python can give one the
    function of the other.

    Args:
        kernels: compiled; some may be the same.
        build: compiles what launches a kernel into Triton's cache of files.
        pool: of threads.
    """
    distinct = {id(k): k for k in kernels}.values()
    list(pool.map(build, distinct))
    for kernel in distinct:
        _ = kernel.run


class _Traced:
    """Runs a function so that `launch` shows its kernels to torch.

    An object, as torch would look for kernels in the source of a function: it finds none behind
    `launch`, and imports all of torch.compile for it, a second of every start.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run
        self.__signature__, self.__globals__ = signature(run), run.__globals__  # for its schema

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = _TRACED.set(not INTERPRETED)
        try:
            return self.run(*args, **kwargs)
        finally:
            _TRACED.reset(token)


class Kernels:
    """A function that launches kernels, with its gradient: an operator, and cheap to call.

    torch.compile and torch.export see the operator saccade::name and the kernels inside. Without
    them its calls go past torch's dispatcher, whose Python costs more than the kernels do.

    Args:
        name: of the operator.
        run: the function; its annotations are the schema.
        keep: as `setup_context` of torch.autograd.Function; None where there is no gradient.
        differentiate: its backward.
        mutates: names of the arguments that are changed.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        keep: Callable[..., None] | None = None,
        differentiate: Callable[..., Any] | None = None,
        mutates: tuple[str, ...] = (),
    ) -> None:
        op = library.triton_op(f"saccade::{name}", _Traced(run), mutates_args=mutates)
        self.op = cast(Any, op)
        self.eager: Callable[..., Any] = run
        if keep is not None and differentiate is not None:
            self.op.register_autograd(differentiate, setup_context=keep)
            self.eager = function(name, run, keep, differentiate)

    def __call__(self, x: Tensor, *args: Any) -> Any:
        plain = type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
        return (self.eager if plain else self.op)(x, *args)


def function(
    name: str,
    run: Callable[..., Any],
    keep: Callable[..., None],
    differentiate: Callable[..., Any],
) -> Callable[..., Any]:
    """Autograd's function of the three; its own `setup_context` would bind arguments by name."""

    def forward(ctx: Any, *args: Any) -> Any:
        out = run(*args)
        keep(ctx, args, out)
        return out

    body = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    function: Any = type(name, (torch.autograd.Function,), body)
    applied: Callable[..., Any] = function.apply
    return applied


def operator(
    name: str, *, mutates: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Kernels]:
    """Make `Kernels` of a function without gradient."""
    return lambda run: Kernels(name, run, mutates=mutates)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many a GPU has; 1 where kernels are interpreted."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def cache_size(device: torch.device) -> int:
    """Bytes of a GPU's last cache."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def tiles(n: int, size: int) -> int:
    """How many tiles of a size cover n."""
    return -(-n // size)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def like(x: Tensor, layout: Tensor) -> Tensor:
    """`x` with its elements in memory in the order of `layout`, which has its shape."""
    if x.stride() == layout.stride():
        return x
    return torch.empty_like(layout, dtype=x.dtype).copy_(x)


def dense(x: Tensor) -> bool:
    """Whether the steps are one block of memory after the other, in any order of their axes."""
    expected = 1
    for stride, size in sorted(zip(x.stride()[1:], x.shape[1:], strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return expected > 0 and (len(x) == 1 or x.stride(0) == expected)


def last(x: Tensor) -> Tensor:
    """[T B C H W] as [T B H W C]."""
    return x.permute(0, 1, 3, 4, 2)


def first(x: Tensor) -> Tensor:
    """[T B H W C] as [T B C H W]."""
    return x.permute(0, 1, 4, 2, 3)


def channels_last(x: Tensor) -> Tensor:
    """[T B C H W] with the channels of a place side by side in memory."""
    return first(last(x).contiguous())
