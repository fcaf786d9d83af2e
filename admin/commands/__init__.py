"""The `stillroom` command line, a file a noun. Light to import: what a command needs it imports when it is called."""
