"""The runs and checks that a profile needs."""
