"""The producer process: it reads its sector and owes every block until a rank has it."""
