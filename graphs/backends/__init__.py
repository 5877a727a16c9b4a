"""Who answers a tool call in the tool's place: a recording, a simulator, or the tool itself while it is recorded."""
