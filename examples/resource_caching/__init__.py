"""How the pool caches resources: keys, hits and misses, eviction, cleanup, monitoring."""
