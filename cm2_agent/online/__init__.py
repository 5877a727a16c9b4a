"""What goes around a live graph: capture, guards, scoring in the background, and sinks."""
