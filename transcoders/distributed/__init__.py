"""Several processes at one job: starting them, and what they tell each other."""
