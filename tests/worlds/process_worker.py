"""What one process of several does in the tests: fine-tune as the JSON in argv says, and the first one writes losses and weights."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from stage_jobs import stage_job

from gda.generator.finetuning.train import finetune_stage
from gda.runtime.process_group import ProcessGroup


def main() -> None:
    torch.set_num_threads(1)
    request = json.loads(sys.argv[1])
    world, out = ProcessGroup.init(), Path(request["out"])
    images = (torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    job = stage_job(request["base"], Path(request["work"]), images, ("a", "b") * 4, steps=request["steps"], **request["changes"])
    result = finetune_stage(job)
    if world.is_first:
        out.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in result.weights.items()}, out / "weights.safetensors")
        (out / "losses.json").write_text(json.dumps(result.losses))
    ProcessGroup.destroy()


if __name__ == "__main__":
    main()
