"""Search: the index in memory, ranking, re-ranking, answers."""
