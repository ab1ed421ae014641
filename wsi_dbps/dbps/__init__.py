"""Dual-buffer patch selection as pure tensor functions."""
