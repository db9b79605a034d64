"""Floor 0: what the data is. Pure definitions without I/O; imports nothing else of mpistream."""
