"""Where frames come from: sector files, the simulator; and the producer that sends them."""
