"""Predict what Linux KSM would merge, without enabling it."""

__version__ = "0.1.0"
