"""A comparison as one page: everything inline, nothing fetched, every string escaped."""

from mvquant.report.html.page import html_report

__all__ = ["html_report"]
