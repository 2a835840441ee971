"""Reading documents: extraction, chunks, citations."""
