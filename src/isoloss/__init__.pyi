from . import experiments as experiments
from . import losses as losses
from . import reference as reference
from . import regularizers as regularizers
from . import report as report
from . import training as training
from .checking.check import Check as Check
from .checking.check import check as check
from .errors import DerivativeError as DerivativeError
from .errors import InputError as InputError
from .errors import IsolossError as IsolossError
from .methods import SQP as SQP
from .methods import Paper as Paper
from .outcome import Outcome as Outcome
from .path import Path as Path
from .path import Record as Record
from .path import Stop as Stop
from .problem import Problem as Problem
from .regularizers import L1 as L1
from .regularizers import GradientNorm as GradientNorm
from .regularizers import GroupLasso as GroupLasso
from .regularizers import HessianTrace as HessianTrace
from .regularizers import InputGradient as InputGradient
from .regularizers import NuclearNorm as NuclearNorm
from .regularizers import PathNorm as PathNorm
from .regularizers import SquaredNorm as SquaredNorm
from .regularizers import maximize as maximize
from .regularizers import weighted_sum as weighted_sum
from .report import plot as plot
from .store import Checkpoint as Checkpoint
from .store import Results as Results
from .store import ResultsError as ResultsError
from .store import open_results as open_results
from .walking import traverse as traverse
from .walking import walk as walk

__version__: str
__all__: list[str]
