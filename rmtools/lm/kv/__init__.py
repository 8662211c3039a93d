"""Key-value caches: layers, batches, and caches that follow their prefixes."""
