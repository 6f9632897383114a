"""The student networks: torch only, in the ML convention (angstrom, eV)."""
