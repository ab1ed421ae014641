"""Where the tissue is, and which tiles cover it. Reads no files."""
