"""From checkpoints to predictions and features of a cohort."""
