"""The human hands: HTTP API, console and the `stillroom` command line."""
