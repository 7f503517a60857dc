"""A `gda` command as torchrun starts it, in which all processes but the first fail where they write under the folder in argv[1]."""

import sys
from pathlib import Path

from unwritten import only_the_first_writes

from gda.cli.main import main

if __name__ == "__main__":
    only_the_first_writes(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
