"""How often a process looks for garbage that only cycles keep alive."""

import gc

YOUNG_OBJECTS = 50_000


def collect_rarely() -> None:
    """Leave what is loaded now alone for good, and look at the rest once in a while.

    A request or a batch makes many objects and hardly a cycle, and Python's usual rhythm spends a tenth of the time on
    looking at them. Call it when a process has loaded its code.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 20)
