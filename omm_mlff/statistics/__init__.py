"""Intervals and survival, whatever is measured."""
