"""Pictures with Pillow alone: no display, no font file, and the same pixels every time."""

from .animation import save_gif
from .colors import viridis
from .components import draw_pca
from .flow import draw_flow
from .heat_maps import draw_heat_map
from .layout import Panel, plan_panels
from .masks import draw_masks
from .matches import draw_matches
from .parts import draw_parts
from .tables import draw_table
from .tracks import draw_tracks

__all__ = [
    "Panel",
    "draw_flow",
    "draw_heat_map",
    "draw_masks",
    "draw_matches",
    "draw_parts",
    "draw_pca",
    "draw_table",
    "draw_tracks",
    "plan_panels",
    "save_gif",
    "viridis",
]
