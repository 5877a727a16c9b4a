"""The command line: one file a command group, one line of help each."""
