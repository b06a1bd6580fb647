"""Which live run has which device of this node. Two runs never share one; roles of one run may."""

from __future__ import annotations

from collections.abc import Iterable

from agentd.api.errors import DeviceInUse


class DeviceBook:
    """Devices by index, lent to runs."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}

    def reserve(self, run_id: str, devices: Iterable[int]) -> None:
        """Lend devices to a run, all or none. Raises `DeviceInUse` for the first that another one has."""
        wanted = sorted(set(devices))
        for device in wanted:
            owner = self._owners.get(device, run_id)
            if owner != run_id:
                raise DeviceInUse(device, owner)
        self._owners.update(dict.fromkeys(wanted, run_id))

    def release(self, run_id: str) -> None:
        """Take back all that a run has."""
        self._owners = {device: owner for device, owner in self._owners.items() if owner != run_id}
