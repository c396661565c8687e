"""One torch thread, as in the benchmark's workers: results must not depend on the machine, and tiny models are slower on several."""

import os

# Before anything imports torch; a conftest that imported it would slow every test that needs none.
os.environ["OMP_NUM_THREADS"] = "1"
