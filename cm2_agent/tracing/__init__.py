"""Spans to runs: LangChain callbacks, OpenTelemetry spans and what travels beside them."""
