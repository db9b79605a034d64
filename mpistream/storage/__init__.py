"""The dataset on disk: written collectively, read, exported."""
