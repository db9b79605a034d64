"""Batch jobs: Slurm, what is submitted to it, and a Slurm on this machine to try it with."""
