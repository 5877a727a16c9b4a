"""From stored, scored traces to a better policy: advantages, token rows, GRPO and SFT on TRL."""
