"""One module per decoder of slide files."""
