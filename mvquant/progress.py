"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, or nothing; steps done; steps in all)."""
