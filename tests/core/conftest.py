"""What the tests of the core share."""

import torch

# The models here are tiny and pytest runs in several processes: more threads would wait for each other.
torch.set_num_threads(1)
