"""The pipeline: one script per DVC stage."""
