"""Correspondence over time: the objects of a first mask and the points of a first frame, followed through a video.

>>> features = ditf.video.frame_features(fx, "clip.mp4")
>>> labels = ditf.propagate_labels(features, "mask.png")  # (T, H, W)

Needs the extra "video" for video files; GIFs, folders and lists of pictures need nothing more.
"""

from .frames import Frame, Video, frame_features, open_video
from .masks import draw_labels, load_mask, palette, save_mask
from .output import TrackPainter, VideoWriter, load_tracks, save_tracks, write_tracks_csv
from .propagate import iter_labels, propagate_labels
from .protocols import PROTOCOLS, PropagationProtocol, find_protocol
from .track import TrackStep, iter_tracks, track_points

__all__ = [
    "PROTOCOLS",
    "Frame",
    "PropagationProtocol",
    "TrackPainter",
    "TrackStep",
    "Video",
    "VideoWriter",
    "draw_labels",
    "find_protocol",
    "frame_features",
    "iter_labels",
    "iter_tracks",
    "load_mask",
    "load_tracks",
    "open_video",
    "palette",
    "propagate_labels",
    "save_mask",
    "save_tracks",
    "track_points",
    "write_tracks_csv",
]
