"""Time ops and models: nothing is timed that does not equal its reference first."""

from saccade.bench.equality import Unequal as Unequal
from saccade.bench.equality import example_on as example_on
from saccade.bench.equality import require_equal as require_equal
from saccade.bench.memory import peak as peak
from saccade.bench.models import PATHS as PATHS
from saccade.bench.models import bench_model as bench_model
from saccade.bench.ops import bench_ops as bench_ops
from saccade.bench.result import Result as Result
from saccade.bench.scale import AXES as AXES
from saccade.bench.scale import bench_scale as bench_scale
from saccade.bench.scale import draw as draw
from saccade.bench.scale import exponent as exponent
from saccade.bench.settings import Settings as Settings
from saccade.bench.sizes import SIZES as SIZES
from saccade.bench.timing import Timing as Timing
from saccade.bench.timing import interleaved as interleaved
