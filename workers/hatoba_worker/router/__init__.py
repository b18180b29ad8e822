"""The router: the process that answers for deployments, with the server there or not.

It follows the server's table of deployments, keeps the last one on disk, and passes each request on
to a ready replica. What it saw of predictions goes back to the server in batches.
"""
