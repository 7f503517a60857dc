"""Every safeguard that `make controls` takes out, by the row of docs/reliability.md."""

from control import Control
from safeguards_of_data import DATA
from safeguards_of_gates import GATE
from safeguards_of_jobs import JOBS
from safeguards_of_services import SERVICES
from safeguards_of_state import STATE

CONTROLS: tuple[Control, ...] = tuple(sorted((*STATE, *SERVICES, *DATA, *GATE, *JOBS), key=lambda control: control.row))
