"""The explorer: choose a clip, a method and its settings, and see at once what becomes of every visual token.

State and computation (``state``, ``clips``, ``sources``, ``outcome``, ``costs``, ``answers``), drawing (``canvas``,
``cells``, ``timeline``, ``page``, ``table``) and the page of widgets (``controls``, ``widgets``) are apart: ``view``
and all that it uses work without Jupyter.
"""

from holitom_repro.explorer.state import Side, State
from holitom_repro.explorer.view import View, view
from holitom_repro.explorer.widgets import Explorer

__all__ = ["Explorer", "Side", "State", "View", "view"]
