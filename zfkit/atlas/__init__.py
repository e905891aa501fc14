"""Fig. 2 as files: what every layer's feature maps respond to, as pictures (`sheet`), as one page (`page`), and as a
site with a page for every map (`site`, whose pictures `sheets` draws).

`html` loads templates; `templates/` has the page, and `base.html`, which pages of other rooms extend, too.
"""

from __future__ import annotations

from .html import templates
from .page import Atlas, write_atlas
from .sheet import draw_layer
from .site import write_site
