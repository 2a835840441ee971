"""The only importer of openai: calls, their time-outs, errors and token counts."""
