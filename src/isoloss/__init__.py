"""isoloss: walk the level sets of a neural network's training loss.

The public names are listed in `__init__.pyi` and imported when they are first used.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
