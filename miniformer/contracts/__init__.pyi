from .check import check_component as check_component
from .report import Outcome as Outcome
from .report import Report as Report
from .report import Result as Result
from .suite import contract_suite as contract_suite
