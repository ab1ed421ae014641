"""The `wsi-dbps` command: one module per sub-command."""
