"""Values as people read them: tables, pictures, sentences. Nothing is computed or decided here.

What is named below is imported when it is first asked for: pictures need matplotlib, tables need not wait for it.
"""

from typing import TYPE_CHECKING

from mvquant.lazy import lazy_names

if TYPE_CHECKING:
    from mvquant.report.analysis_summary import format_analysis, write_analysis
    from mvquant.report.comparison_pages import write_report
    from mvquant.report.comparison_table import comparison_markdown
    from mvquant.report.model_card import model_card_section
    from mvquant.report.plan_table import format_plan, plan_summary
    from mvquant.report.verdict import verdict_table
    from mvquant.report.verdict_markdown import markdown_table
    from mvquant.report.verdict_picture import verdict_chart
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "analysis_summary": ("format_analysis", "write_analysis"),
            "comparison_pages": ("write_report",),
            "comparison_table": ("comparison_markdown",),
            "model_card": ("model_card_section",),
            "plan_table": ("format_plan", "plan_summary"),
            "verdict": ("verdict_table",),
            "verdict_markdown": ("markdown_table",),
            "verdict_picture": ("verdict_chart",),
        },
    )

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
