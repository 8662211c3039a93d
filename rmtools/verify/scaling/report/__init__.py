"""The report of `verify scaling`: what follows from the points, its page, Markdown and pictures."""

from rmtools.verify.scaling.report.page import summary, write_report

__all__ = ["summary", "write_report"]
