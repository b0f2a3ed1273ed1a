from .kit.check import check_component as check_component
from .kit.report import Outcome as Outcome
from .kit.report import Report as Report
from .kit.report import Result as Result
from .kit.suite import contract_suite as contract_suite
