"""Telling a process from a later one with the same id."""

import subprocess
from pathlib import Path

__all__ = ["process_start"]


def process_start(pid: int) -> str | None:
    """When process `pid` started, as an opaque text; None if it is gone (or only its zombie is left)."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except OSError:
            return None
        # proc(5): after the name in parentheses come field 3, the state, and field 22, the start in ticks.
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    listed = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    return listed.stdout.strip() or None
