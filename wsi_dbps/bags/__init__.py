"""Slides on disk as bags of patches or features, read as tensors."""
