"""A rank: receive, assemble, count, journal; then gather and write together with the others."""
