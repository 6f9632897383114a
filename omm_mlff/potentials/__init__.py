"""What can be validated, one file per source."""
