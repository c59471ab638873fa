"""Policies: which rows of Q and K are protected, and the plan that follows."""

from mvquant.policies.choice import POLICIES, Policy
from mvquant.policies.make_plan import make_plan, require_rope

__all__ = ["POLICIES", "Policy", "make_plan", "require_rope"]
