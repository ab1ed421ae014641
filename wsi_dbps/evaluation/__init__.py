"""Predictions, metrics with intervals, and the report."""
