"""The explorer: choose a clip, a method and its settings, and see at once what becomes of every visual token."""

from holitom_repro.explore.page import Explorer
from holitom_repro.explore.state import METHODS, Side, State, View, view

__all__ = ["METHODS", "Explorer", "Side", "State", "View", "view"]
