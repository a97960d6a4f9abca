"""Three replicas and one limit: slots, rates and pauses that hold over a fleet."""
