"""Audits: attack scores -> bounds on epsilon, power, verdict. `docs/auditing.md` says which is for what.

A pass means that no gross fault was seen. It never confirms an epsilon.
"""

from accounting.audit.fit import gaussian_fit
from accounting.audit.guesses import one_run, one_run_fdp
from accounting.audit.laws import Laws
from accounting.audit.ratios import likelihood_ratio
from accounting.audit.record import Audit, Kind, Method, Verdict
from accounting.audit.thresholds import many_runs

__all__ = [
    "Audit",
    "Kind",
    "Laws",
    "Method",
    "Verdict",
    "gaussian_fit",
    "likelihood_ratio",
    "many_runs",
    "one_run",
    "one_run_fdp",
]
