"""Values as people read them: tables, pictures, sentences. Nothing is computed or decided here."""

from mvquant.report.analysis_summary import format_analysis, write_analysis
from mvquant.report.plan_table import format_plan, plan_summary
from mvquant.report.verdict import verdict_table
from mvquant.report.verdict_chart import verdict_chart
from mvquant.report.verdict_markdown import markdown_table

__all__ = [
    "format_analysis",
    "format_plan",
    "markdown_table",
    "plan_summary",
    "verdict_chart",
    "verdict_table",
    "write_analysis",
]
