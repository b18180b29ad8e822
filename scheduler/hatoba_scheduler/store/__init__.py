"""Durable state: one protocol, one folder per database."""
