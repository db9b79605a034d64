"""The leader of an MPI job, and what the conducting job decides for all."""
