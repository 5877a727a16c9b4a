"""The agent's tool loop and the dialogues it is run in, as LangGraph state machines."""
