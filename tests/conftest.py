"""What every test needs before torch is loaded."""

import os

# The operations here are small, and the cores are shared: threads that spin for each other cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")
