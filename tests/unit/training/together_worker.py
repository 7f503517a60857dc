"""One of several processes in the tests: train the cases named in argv; the first process writes their results.

argv: folder for results, then names of cases. A case resumes from its checkpoint folder if there is one.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from together_cases import CASES, StoppedError, train
from unwritten import only_the_first_writes

from gda.runtime.process_group import ProcessGroup


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    world = ProcessGroup.init()
    only_the_first_writes(out)
    for name in sys.argv[2:]:
        case = CASES[name]
        seen: list[int] = []
        try:
            model, curve = train(case, out / name, world=world, seen=seen)
        except StoppedError:
            continue
        finally:
            if world.is_first:
                (out / name).mkdir(exist_ok=True)
                (out / name / "seen.json").write_text(json.dumps(seen))
        if world.is_first:
            save_file({key: value.contiguous() for key, value in model.state_dict().items()}, out / name / "weights.safetensors")
            (out / name / "curve.json").write_text(json.dumps(curve))
    ProcessGroup.destroy()


if __name__ == "__main__":
    main()
