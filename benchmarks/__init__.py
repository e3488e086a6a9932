"""Speed and memory against peers and against the floor. Writes tables, asserts nothing about time."""

import os

# Threads that wait actively slow everything on a shared machine, and all contenders by about half.
# OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
