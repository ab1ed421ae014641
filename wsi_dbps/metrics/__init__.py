"""Statistics on arrays of predictions: no torch, no files."""
