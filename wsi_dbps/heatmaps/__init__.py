"""Attention drawn as pictures and as QuPath tiles."""
