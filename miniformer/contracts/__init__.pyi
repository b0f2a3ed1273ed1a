from miniformer.contracts.kit.check import check_component as check_component
from miniformer.contracts.kit.report import Outcome as Outcome
from miniformer.contracts.kit.report import Report as Report
from miniformer.contracts.kit.report import Result as Result
from miniformer.contracts.kit.suite import contract_suite as contract_suite
