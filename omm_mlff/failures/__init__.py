"""Why a run failed: what went wrong first, where, and a script that shows it again."""
