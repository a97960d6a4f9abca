"""Configuration per customer: rates by tier, priorities, feature flags."""
