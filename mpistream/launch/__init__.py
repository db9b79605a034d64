"""Starts and supervises processes. Never loads mpi4py."""
