"""Values as people read them: tables, pictures, sentences. Nothing is computed or decided here."""

from mvquant.report.analysis_summary import format_analysis, write_analysis
from mvquant.report.comparison_pages import write_report
from mvquant.report.comparison_table import comparison_markdown
from mvquant.report.model_card import model_card_section
from mvquant.report.plan_table import format_plan, plan_summary
from mvquant.report.verdict import verdict_table
from mvquant.report.verdict_chart import verdict_chart
from mvquant.report.verdict_markdown import markdown_table

__all__ = [
    "comparison_markdown",
    "format_analysis",
    "format_plan",
    "markdown_table",
    "model_card_section",
    "plan_summary",
    "verdict_chart",
    "verdict_table",
    "write_analysis",
    "write_report",
]
