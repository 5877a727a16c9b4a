"""Redaction: personal data and secrets found and replaced, in texts, JSON, runs, tasks and checklists."""
