"""Pictures with Pillow alone: no display, no font file, and the same pixels every time."""

from .colors import viridis
from .heat_maps import draw_heat_map
from .layout import Panel, plan_panels
from .matches import draw_matches
from .tables import draw_table

__all__ = ["Panel", "draw_heat_map", "draw_matches", "draw_table", "plan_panels", "viridis"]
