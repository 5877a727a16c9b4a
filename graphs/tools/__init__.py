"""Where tools come from: typed functions, MCP servers, a task's declarations."""
