"""The pipeline: one script per DVC stage."""

import os

# Threads that spin while they wait slow every other process on the machine, and each other when
# there are more of them than free cores. OpenMP reads this once, before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
