"""Matches in files that other programs read: JSON, CSV, NPZ, HDF5, COLMAP's text files, hloc's HDF5 files."""

from .files import load_matches, save_matches
from .structure import export_colmap, export_hloc, image_names

__all__ = ["export_colmap", "export_hloc", "image_names", "load_matches", "save_matches"]
