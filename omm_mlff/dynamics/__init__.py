"""A potential in motion: evaluator, start, replicas, recording, watch."""
