"""What other instrumentations put on their spans, read into runs: a neutral span, and a module for each dialect."""
