import sys

from gda.cli import main

sys.exit(main())
