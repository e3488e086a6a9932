"""What every stage's script stands on: its parameters, its paths, its start and end."""
