"""Train on whole pathology slides, end to end, from pixels, with dual-buffer patch selection."""
