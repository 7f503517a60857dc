"""A step whose network several processes of this machine train together, one on each accelerator."""

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from gda.runtime.failed_processes import code_of_torchrun, error_of
from gda.runtime.parallel import num_accelerators
from gda.steps.graph import StepRequest
from gda.steps.step import Step, run_step

_TOGETHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# How long the processes have to write what they were at, when the step is ended.
_GRACE = 30
_LINES_KEPT = 400


def train_here(
    step: str,
    *,
    inputs: Mapping[str, str],
    settings: str,
    data_root: str,
    code: str,
    item: Mapping[str, str] | None = None,
    processes: int = 0,
) -> Step:
    """Train the network of `step` (finetune, or classify with its `item`) on this machine, under torchrun where there is work for it.

    `processes` 0 is one for each accelerator, and one without any. Raises what `run_step` raises, and the error of the first
    process that failed, with its sentence and exit code.
    """
    count = processes or max(1, num_accelerators())

    def together(_request: StepRequest, words: Sequence[str]) -> None:
        _launch([sys.executable, *_TOGETHER, str(count), "-m", "gda", *words])

    by = together if count > 1 else None
    return run_step(step, inputs=inputs, settings=settings, data_root=data_root, code=code, item=item, by=by)


def _launch(command: Sequence[str]) -> None:
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    messages: list[str] = []
    written: list[str] = []  # the last lines, in which torchrun says how each process ended
    assert process.stderr is not None
    reading = threading.Thread(target=_pass_on, args=(process.stderr, messages, written), daemon=True)
    reading.start()
    try:
        code = process.wait()
    except BaseException:
        process.terminate()  # torchrun ends the processes that it started
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    reading.join(_GRACE)
    if code:
        code = code_of_torchrun(written) or code
        raise error_of(code, messages[0] if messages else f"processes that train together: exit code {code}; their own lines say why")


def _pass_on(lines: IO[str], messages: list[str], written: list[str]) -> None:
    """Print what the processes say, and keep their sentences of what is wrong, and the last lines of all."""
    for line in lines:
        written.append(line)
        del written[:-_LINES_KEPT]
        print(line, end="", file=sys.stderr, flush=True)
        if line.startswith("gda "):
            messages.append(line.partition(": ")[2].strip())
