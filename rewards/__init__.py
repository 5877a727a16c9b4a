"""What a trace is worth: checks, satisfaction and payment, and the scorer that joins them into a Score."""
