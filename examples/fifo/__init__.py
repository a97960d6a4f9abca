"""A FIFO queue: order per account, accounts in parallel."""
