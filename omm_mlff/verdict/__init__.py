"""From measurements to a verdict, where torch and OpenMM need not be."""
