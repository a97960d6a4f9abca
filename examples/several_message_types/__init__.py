"""Several kinds of messages on one queue: a handler for each, and a reason for each unknown one."""
