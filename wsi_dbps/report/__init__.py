"""The HTML report of an evaluation, its figures and tables."""
