"""The report of a sweep: one self-contained HTML page, rebuilt from the run folders at any time."""

from suite.report.page import write_report

__all__ = ["write_report"]
