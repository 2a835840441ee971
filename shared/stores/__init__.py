"""Stores: each wraps the Lua scripts and reads of one kind of record."""
