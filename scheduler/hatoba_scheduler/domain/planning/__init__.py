"""The planner: which task goes where next, what makes room for it, why others wait. Pure."""
