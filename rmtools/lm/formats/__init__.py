"""Published process reward models: their conventions as data, and one loader for all of them."""
