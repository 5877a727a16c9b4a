"""What a checklist pays for that nobody wants: tried on counterfeit dialogues, and on those of a store."""
