"""Stored traces as files that other tools read: a module a format, and what each of them cannot carry."""
