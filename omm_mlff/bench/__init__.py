"""What a potential costs: ways of running it, timed side by side on one machine."""
