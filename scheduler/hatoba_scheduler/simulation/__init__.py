"""The real planner and state machine on a virtual clock, with a scripted cluster."""
