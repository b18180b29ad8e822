"""Pure: records, transitions, causes, planning. No I/O, no clock, no grpc."""
