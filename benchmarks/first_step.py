"""What the seconds before the first step of a training are, on a GPU without compiled kernels.

TRITON_CACHE_DIR=$(mktemp -d) python benchmarks/first_step.py [--no-search]

Prints the time since the start of Python at which each stage is over, then the kernels that took
longest to compile. --no-search leaves cuDNN without its search for the fastest algorithms.
"""

import time

BEGAN = time.perf_counter()

import sys  # noqa: E402

import torch  # noqa: E402


def over(stage: str) -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    print(f"{time.perf_counter() - BEGAN:7.2f} {stage}", flush=True)


over("torch imported")
import triton.compiler  # noqa: E402

compiled: list[tuple[float, float, float, str]] = []
"""Begin, end, seconds of a thread without those of ptxas, name."""
compile_one = triton.compiler.compile


def watched(source, *args, **kwargs):
    began, busy = time.perf_counter(), time.thread_time()
    kernel = compile_one(source, *args, **kwargs)
    spent = time.thread_time() - busy
    name = getattr(source, "name", "?")
    compiled.append((began - BEGAN, time.perf_counter() - BEGAN, spent, name))
    return kernel


triton.compiler.compile = watched
from saccade.bench.models import make_case  # noqa: E402
from saccade.bench.settings import Settings  # noqa: E402
from saccade.bench.timing import graphed  # noqa: E402

torch.backends.cudnn.benchmark = "--no-search" not in sys.argv
over("saccade imported")
torch.zeros(1, device="cuda")
over("CUDA context")
settings = Settings(device="cuda", precision="bfloat16")
case = make_case("train", "spikformer_4_384", {}, 256, settings)
over("model on the card")
case.rehearse()
over("kernels compiled and loaded")
compiled.sort()
begins, ends, spent, _ = zip(*compiled, strict=True)
walls = [end - begin for begin, end, *_ in compiled]
print(
    f"        {len(compiled)} kernels from {begins[0]:.2f} to {max(ends):.2f}, the last begun at "
    f"{begins[-1]:.2f}; {sum(walls):.1f} s of all, {sum(spent):.1f} of them in threads"
)
for n in range(3):
    case.step()
    over(f"step {n + 1}")
replay = graphed(case.step)
over("step recorded")
for _ in range(40):
    replay()
over("40 steps replayed")
for begin, end, busy, name in sorted(compiled, key=lambda row: row[0] - row[1])[:12]:
    print(f"        {begin:.2f} to {end:.2f}, {busy:.2f} in its thread: {name}")
