"""The HTTP API's endpoints, a file a noun: thin, over the functions that the command line uses too."""
