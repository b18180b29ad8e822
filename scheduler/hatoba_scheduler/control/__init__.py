"""The loops that make stored decisions happen, and the ledger through which all decisions go."""
