"""What `scripts/check_exact_resume.py` checks: saved states of games, and stopped runs in every family of worlds."""
