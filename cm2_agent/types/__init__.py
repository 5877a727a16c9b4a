"""The data types that all rooms share: traces, tasks, checklists, scores and the protocols of what can be swapped.

They know no database, no LangChain and no torch. Users import them from `cm2_agent`."""
