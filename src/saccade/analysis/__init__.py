"""Watch any model without editing it: firing rates, operations, energy, what attention sees."""

from saccade.analysis.energy import HOROWITZ_45NM as HOROWITZ_45NM
from saccade.analysis.energy import Energy as Energy
from saccade.analysis.explain import Explanation as Explanation
from saccade.analysis.explain import explain as explain
from saccade.analysis.observe import observe as observe
from saccade.analysis.record import Recording as Recording
from saccade.analysis.record import record as record
