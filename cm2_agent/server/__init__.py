"""`cm2 serve`: a collector of OpenTelemetry spans, and a proxy in front of a chat API, whose calls become runs."""
