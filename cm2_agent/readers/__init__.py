"""Readers of other tools' records: each turns a file into runs, tasks and outcomes."""
