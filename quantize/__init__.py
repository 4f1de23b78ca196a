"""From a bundle to a smaller bundle: recipes, and the passes that apply them to its graphs.

`retnet_edge.quantize(bundle, out)` calls `retnet_edge.quantize.quantize.quantize`.
"""

import sys

from retnet_edge.callable_package import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
