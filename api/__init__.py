"""The HTTP edge: authenticate, decode, admit, enqueue, read, relay."""
