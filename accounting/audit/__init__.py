"""Audits: arrays of attack scores -> bounds on epsilon, power, verdict. `docs/auditing.md` says which is for what."""

from accounting.audit.guesses import one_run, one_run_fdp
from accounting.audit.record import Audit, Kind, Method, Verdict

__all__ = ["Audit", "Kind", "Method", "Verdict", "one_run", "one_run_fdp"]
