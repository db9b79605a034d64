"""What a rank does with blocks: assemble frames, calibrate, count electrons, gather events."""
