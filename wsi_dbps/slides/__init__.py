"""Pixels from a slide file."""
