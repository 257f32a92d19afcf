"""torch.compile and torch.export see through every op, without a break in the graph.

In a process of its own: the shape checks of the tests cannot be traced.
"""

import subprocess
import sys

import pytest

PROGRAM = """
import copy, torch, saccade
torch.manual_seed(0)
model = saccade.create_model(
    "spikformer_4_384", dim=32, depth=1, heads=4, num_classes=10, image_size=32
)
x = torch.randn(2, 3, 32, 32)
twin = copy.deepcopy(model)
out = torch.compile(model, backend="aot_eager", fullgraph=True)(x)
out.square().sum().backward()
want = twin(x)
want.square().sum().backward()
assert torch.equal(out, want)
for p, q in zip(model.parameters(), twin.parameters(), strict=True):
    torch.testing.assert_close(p.grad, q.grad)
model.eval()
with torch.no_grad():
    want = model(x)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), want)
"""

ANY_BATCH = """
import torch, saccade
from saccade.transform import fuse
torch.manual_seed(0)
small = {"dim": 32, "depth": 1, "heads": 2, "image_size": 16}
vit = saccade.create_model("spikformer", **small).eval()
gated = saccade.create_model("ma_gesture_3", T=2).eval()
for model, axis in (vit, 0), (fuse(vit, "int8"), 0), (gated, 1):
    shape = [2, *model.frame] if axis == 0 else [2, 2, *model.frame]
    with torch.no_grad():
        batch = {axis: torch.export.Dim.DYNAMIC}
        program = torch.export.export(model, (torch.rand(shape),), dynamic_shapes=(batch,))
        for shape[axis] in (1, 3):
            x = torch.rand(shape)
            torch.testing.assert_close(program.module()(x), model(x))
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [PROGRAM, ANY_BATCH], ids=["equal", "any batch"])
def test_compiled_and_exported_models_equal_the_model(program: str):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
