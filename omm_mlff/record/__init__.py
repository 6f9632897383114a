"""What a run leaves on disk, read with numpy and tables alone."""
