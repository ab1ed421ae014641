"""Synthetic slides and cohorts as real pyramidal files."""
