"""Tasks: what a slide is asked. Targets, loss, metrics and predictions, one file per task."""
