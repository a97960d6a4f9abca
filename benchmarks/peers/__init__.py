"""The same work by different consumers: each module is a worker that a benchmark runs in a process of its own."""
