"""Potentials whose truth is known, put through validation."""
