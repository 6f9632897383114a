"""Distances, molecules, scans, relaxation, normal modes."""
