"""Measurements whose results are committed."""
