"""From a checkpoint to graphs: the step contract as torch modules, lowered into a bundle.

`retnet_edge.export(checkpoint, out)` calls `retnet_edge.export.export.export`.
"""

import sys

from retnet_edge.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
