"""Says which systems the wheel is for: any Python 3 on the platform of the programs in it (MMX_WHEEL_PLATFORM)."""

import os

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelTag(BuildHookInterface):
    """Read by hatchling: see pyproject.toml."""

    def initialize(self, version, build_data):
        """Sets the tag; the programs are no Python, so the wheel is for one platform."""
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + os.environ["MMX_WHEEL_PLATFORM"]
