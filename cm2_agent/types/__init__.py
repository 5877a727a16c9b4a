"""The data types: what happened, what to do, what it is worth. No I/O, no LangChain, no torch."""
