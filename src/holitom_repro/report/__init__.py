"""The report: the ledger, every notebook and the method as a static site that opens from disk."""

from holitom_repro.report.site import build

__all__ = ["build"]
