"""Batch jobs: Slurm, what is submitted to it, and a Slurm on this machine to try it with."""
"""Batch jobs: a script per mode, the site it is for, its submission, and what it runs."""
