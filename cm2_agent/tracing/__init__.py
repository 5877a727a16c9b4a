"""From LangChain callbacks to OpenTelemetry spans, and from spans to runs."""
