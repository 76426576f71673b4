"""Statistics: aggregation of events, and the panels that are computed from the aggregates."""
