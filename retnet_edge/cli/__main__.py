"""`python -m retnet_edge.cli COMMAND`, for launchers such as torchrun."""

import sys

from retnet_edge.cli.app import main

sys.exit(main())
