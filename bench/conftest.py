"""Benchmarks run the kernels as users get them, on a stated number of threads."""

import os

os.environ["TRITON_INTERPRET"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("DITF_KERNELS_BACKEND", None)

import harness
import torch

torch.set_num_threads(harness.THREADS)
