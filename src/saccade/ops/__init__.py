"""Pure functions on tensors: no parameters, no hidden state."""

from saccade.ops._op import OPS as OPS
from saccade.ops._op import Op as Op
from saccade.ops._op import listening as listening
from saccade.ops._op import reference_only as reference_only
from saccade.ops._op import within as within
from saccade.ops._triton import rehearse as rehearse
from saccade.ops.conv import conv as conv
from saccade.ops.conv import convs as convs
from saccade.ops.conv_lif import conv_lif as conv_lif
from saccade.ops.lif import Fire as Fire
from saccade.ops.lif import lif as lif
from saccade.ops.linear_lif import linear_lif as linear_lif
from saccade.ops.lrf import causal_mix as causal_mix
from saccade.ops.lrf import fft_convolve as fft_convolve
from saccade.ops.lrf import token_scan as token_scan
from saccade.ops.norm_lif import Join as Join
from saccade.ops.norm_lif import Norm as Norm
from saccade.ops.norm_lif import norm_lif as norm_lif
from saccade.ops.norm_lif import summed as summed
from saccade.ops.pmsn import soma as soma
from saccade.ops.project import affine_lif as affine_lif
from saccade.ops.project import project_lif as project_lif
from saccade.ops.project import sense_lif as sense_lif
from saccade.ops.surrogate import SURROGATE as SURROGATE
from saccade.ops.surrogate import Surrogate as Surrogate
from saccade.ops.surrogate import spike as spike
