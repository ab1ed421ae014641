"""Which slides, whose, their label and split."""
