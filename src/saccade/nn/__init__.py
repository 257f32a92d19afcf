"""Parameters without architecture: neurons, layers, stems."""

from saccade.nn.layers import MLP as MLP
from saccade.nn.layers import Head as Head
from saccade.nn.layers import Projection as Projection
from saccade.nn.layers import merge_heads as merge_heads
from saccade.nn.layers import per_frame as per_frame
from saccade.nn.layers import split_heads as split_heads
from saccade.nn.neurons import IF as IF
from saccade.nn.neurons import LIF as LIF
from saccade.nn.neurons import NEURON as NEURON
from saccade.nn.neurons import PLIF as PLIF
from saccade.nn.neurons import Neuron as Neuron
from saccade.nn.neurons import make_neuron as make_neuron
from saccade.nn.neurons import on_spikes as on_spikes
from saccade.nn.stems import SPS as SPS
from saccade.nn.stems import STEM as STEM
from saccade.nn.stems import Stem as Stem
