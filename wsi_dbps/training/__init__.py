"""Bags from caches, the loop, checkpoints and the run folder."""
