"""One thin servicer per service of the contract."""
