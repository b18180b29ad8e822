"""The runner that comes with a job, where no host of ours is: in its image, in its pod.

It goes the same course as a host's worker, with one attempt and unary calls. See docs/runner.md.
"""
