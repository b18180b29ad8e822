"""Containers of this host, by a Docker engine. Its client is imported when an engine is there."""
