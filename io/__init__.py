"""Everything that touches an outside system: one file per system, each behind one URI scheme."""
