"""The human hands: HTTP API and the `stillroom` command line."""
