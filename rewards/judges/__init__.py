"""Judges: models that answer a checklist's questions with quotes that are checked."""
