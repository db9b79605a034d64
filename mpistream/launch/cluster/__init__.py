"""Batch jobs: a script per mode, the site it is for, its submission, and what it runs."""
