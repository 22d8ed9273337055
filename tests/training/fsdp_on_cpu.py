"""Runs a script under configs/accelerate/fsdp2.yaml on CPU processes, where accelerate itself would take DDP.

python fsdp_on_cpu.py SCRIPT [arguments of the script]
"""

import os
import runpy
import sys
from pathlib import Path

import accelerate.state
import yaml
from accelerate.utils import DistributedType

CONFIG = Path(__file__).parents[2] / "configs" / "accelerate" / "fsdp2.yaml"


def use_fsdp_on_cpu() -> None:
    """accelerate turns MULTI_GPU into FSDP where a plugin asks for it; here it does the same with MULTI_CPU."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for name, value in yaml.safe_load(CONFIG.read_text())["fsdp_config"].items():
        os.environ[name.upper()] = str(value)
    original = accelerate.state.AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = DistributedType.FSDP
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = patched


if __name__ == "__main__":
    use_fsdp_on_cpu()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
