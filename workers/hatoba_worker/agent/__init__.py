"""The agent of a device: keeps it running what it is to run, whatever happens to link and power.

It dials out and listens to nobody. What it decides is in `slots`, which knows neither clock nor
disk; what it decided is in the `journal` before it acts.
"""
