"""Images from code and environment, through a Docker engine. Standard library only: it runs as a
job, in whatever environment that has."""
