"""Proof, on a real Redis and through the real OpenAI SDK."""
