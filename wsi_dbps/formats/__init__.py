"""One module per file format: how it is written, read and checked."""
