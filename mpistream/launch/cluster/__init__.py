"""Batch jobs: a script per mode, the site it is for, its submission, what it runs, and a Slurm to try it with."""
