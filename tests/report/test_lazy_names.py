"""Tables do not wait for matplotlib."""

import subprocess
import sys

from mvquant import report


def test_all_that_is_offered_is_there():
    for name in report.__all__:
        assert getattr(report, name).__name__ == name
    assert sorted(report.__all__) == report.__all__


def test_tables_leave_matplotlib_out():
    code = "import sys; from mvquant.report import plan_summary; print('matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
