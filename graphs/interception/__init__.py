"""How a tool call reaches a backend: in tool nodes, in functions of plain nodes, in LangChain's agents."""
