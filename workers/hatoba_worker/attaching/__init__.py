"""Somebody attached to an attempt: a command beside it, or a connection to a port of it."""
