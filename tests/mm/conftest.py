"""mmpose can be imported once our shims are in place: a page run alone must find them."""

import sagecache.mm.registry  # noqa: F401
