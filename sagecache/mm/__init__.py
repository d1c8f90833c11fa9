"""The only room that imports mmpose: training, evaluation and export on mmengine's Runner."""

from sagecache.mm.first_import import import_patiently

import_patiently("yapf")  # mmengine imports it
