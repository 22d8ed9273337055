"""Runs a script whose launcher asks for DeepSpeed on CPU processes, where DeepSpeed would first compile for a minute.

accelerate launch --config_file configs/accelerate/deepspeed_zero2.yaml deepspeed_on_cpu.py SCRIPT [its arguments]
"""

import os
import runpy
import sys

os.environ["DS_ACCELERATOR"] = "cpu"  # also where there is a GPU; read when deepspeed is imported

from deepspeed.comm import torch as deepspeed_backend

if __name__ == "__main__":
    deepspeed_backend.build_shm_op = lambda: None  # sums over shared memory; without it gloo does them
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
